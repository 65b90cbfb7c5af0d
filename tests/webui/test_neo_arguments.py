"""Forge Neo's own arguments against a lack of memory: tiles that we do without, and another device for the VAE."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.webui import host as hosts
from tests.webui.scenarios import SCENARIOS
from tests.webui.test_pictures import assert_same, entry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hosts.IS_NEO, reason="only Forge Neo has these arguments"),
]


@pytest.mark.parametrize(
    "arguments", [("--neveroom", "--tiled-conv2d", "64"), ("--cpu-vae",), ("--vae-device", "cpu")], ids=" ".join
)
def test_the_pictures_are_the_same(
    without: dict[str, hosts.Picture], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """``--neveroom`` always decodes in overlapping tiles, ``--tiled-conv2d`` cuts each convolution."""
    hosts.prepare_data(tmp_path)
    running = hosts.start(tmp_path, *arguments)
    try:
        for name in ("txt2img", "img2img"):
            picture = running.generate(**SCENARIOS[name])
            assert_same(picture, without[name])
            assert entry(picture.infotext) == "full"
    finally:
        running.stop()
