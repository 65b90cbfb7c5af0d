"""Forge and its kin ask their memory manager before they decode, and may leave weights in main memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.webui.host import IS_CLASSIC, IS_FORK, Host
from tests.webui.test_pictures import Without, assert_same, entry

pytestmark = pytest.mark.skipif(not IS_FORK, reason="the host has no memory manager")
MB = 1 << 20
PLAIN = 2178 * 16 * 16 * 64 * 4  # what it asks for 128x128 in fp32


def asked(host: Host) -> list[float]:
    """Since the last time, for the VAE."""
    bytes_asked: list[float] = host.get("/probe/memory-asked")
    return bytes_asked


def test_it_is_asked_for_our_plan_and_no_more(host: Host) -> None:
    host.generate()
    asked(host)
    host.generate()
    ours = asked(host)
    assert ours
    assert max(ours) < PLAIN / 4


def test_when_ours_fails_the_hosts_own_decode_gets_what_it_needs(host: Host, without: Without) -> None:
    host.generate()
    asked(host)
    host.post("/probe/fail")
    picture = host.generate()
    assert_same(picture, without["txt2img"])
    assert entry(picture.infotext) == "the WebUI's own decode"
    assert asked(host)[-1] == PLAIN
    host.generate()
    assert max(asked(host)) < PLAIN / 4


def test_when_both_fail_the_hosts_tiles_are_its_own(host: Host) -> None:
    """Larger than its tiles (64x64, 32x128, 128x32) so that it cuts at all."""
    large: dict[str, Any] = {"width": 576, "height": 576, "steps": 1}
    host.post("/probe/measuring?on=false")
    whole = host.generate(**large)
    told = host.log().count("the WebUI's own code was used instead")
    host.post("/probe/fail?times=-1")  # each and every
    host.post("/probe/run-out?above=4096")
    asked(host)
    try:
        tiles = host.generate(**large)
        requests = asked(host)
    finally:
        host.post("/probe/fail?times=0")
        decoded = host.post("/probe/run-out?above=1000000")
        host.post("/probe/measuring?on=true")
    assert "retrying" in host.log().lower()  # with tiles; Neo breaks its lines
    assert len(decoded) == 1 + 4 + 5 + 5  # the whole, and three sizes of tiles
    assert decoded[0] == 72 * 72
    assert entry(tiles.infotext) == "the WebUI's own decode"
    off = np.abs(tiles.images[0].astype(int) - whole.images[0])
    assert 0 < off.mean() < 20  # the same picture, in tiles
    assert requests[1] == 2178 * 72 * 72 * 64 * 4  # ours, then what it takes itself
    assert host.log().count("the WebUI's own code was used instead") == max(told, 1)  # once in the session
    assert entry(host.generate().infotext) == "full"


@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM"])
def test_a_vae_that_is_loaded_in_part(host: Host, without: Without, decode_by: str) -> None:
    host.generate()
    cast, layers = host.post("/probe/load-in-part")
    assert 0 < cast <= (layers if IS_CLASSIC else layers - 1)  # Forge Classic casts them all
    try:
        picture = host.generate(guard=[False, decode_by, 0])
    finally:
        host.post("/probe/load-again")
    assert_same(picture, without["txt2img"])
    assert entry(picture.infotext, "VAE Guard decode by") == decode_by
    assert (entry(picture.infotext) or "").lower().startswith(decode_by.lower())
