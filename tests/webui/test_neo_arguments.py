"""Forge Neo's own arguments against a lack of memory: what they cut into tiles is decoded whole by us."""

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


def test_its_tiles_are_not_needed(without: dict[str, hosts.Picture], tmp_path: Path) -> None:
    """``--neveroom`` always decodes in overlapping tiles, ``--tiled-conv2d`` cuts each convolution."""
    hosts.prepare_data(tmp_path)
    running = hosts.start(tmp_path, "--neveroom", "--tiled-conv2d", "64")
    try:
        for name in ("txt2img", "img2img"):
            picture = running.generate(**SCENARIOS[name])
            assert_same(picture, without[name])
            assert entry(picture.infotext) == "full"
    finally:
        running.stop()
