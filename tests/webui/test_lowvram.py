"""With --medvram the host wraps the VAE's encode and decode and moves the models about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.webui import host as hosts
from tests.webui.scenarios import SCENARIOS
from tests.webui.test_pictures import assert_same, entry


@pytest.fixture(scope="module")
def medvram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    data = tmp_path_factory.mktemp("medvram")
    hosts.prepare_data(data)
    running = hosts.start(data, "--medvram")
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["txt2img", "tiling", "img2img"])
@pytest.mark.parametrize("decode_by", ["Auto", "Tiled"])
def test_same_picture(
    medvram: hosts.Host, without: dict[str, hosts.Picture], name: str, decode_by: str
) -> None:
    picture = medvram.generate(**SCENARIOS[name], guard=[True, decode_by, 0])
    assert_same(picture, without[name])
    assert (entry(picture.infotext) or "").startswith("full" if decode_by == "Auto" else "tiled")
    assert "Please report this" not in medvram.log()
