"""With --medvram and --lowvram the host wraps the VAE's encode and decode and moves the models about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.webui import host as hosts
from tests.webui.scenarios import SCENARIOS
from tests.webui.test_pictures import assert_same, entry

pytestmark = pytest.mark.skipif(hosts.IS_NEO, reason="Neo has no such arguments")


@pytest.fixture(scope="module", params=["--medvram", "--lowvram"])
def low(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    data = tmp_path_factory.mktemp("low")
    hosts.prepare_data(data)
    running = hosts.start(data, request.param)
    yield running
    running.stop()


@pytest.mark.parametrize("name", ["txt2img", "tiling", "img2img"])
@pytest.mark.parametrize("decode_by", ["Auto", "Tiled"])
def test_same_picture(low: hosts.Host, without: dict[str, hosts.Picture], name: str, decode_by: str) -> None:
    picture = low.generate(**SCENARIOS[name], guard=[True, decode_by, 0])
    assert_same(picture, without[name])
    assert (entry(picture.infotext) or "").startswith("full" if decode_by == "Auto" else "tiled")
    assert "Please report this" not in low.log()
