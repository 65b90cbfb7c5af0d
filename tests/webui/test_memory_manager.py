"""Forge and its kin ask their memory manager before they decode, and may leave weights in main memory."""

from __future__ import annotations

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
    host.post("/probe/fail-once")
    picture = host.generate()
    assert_same(picture, without["txt2img"])
    assert entry(picture.infotext) == "the WebUI's own decode"
    assert asked(host)[-1] == PLAIN
    host.generate()
    assert max(asked(host)) < PLAIN / 4


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
