"""Qwen-Image's VAE in Forge Neo: the networks and the engine are its own, the weights small and random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.networks import taehv
from tests.webui.host import IS_NEO, Host, Picture
from tests.webui.scenarios import HIRES, IMG2IMG, SCENARIOS
from tests.webui.test_pictures import assert_close, entry

pytestmark = pytest.mark.skipif(not IS_NEO, reason="only Forge Neo has these networks")

KINDS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "not in 64s": {"width": 136, "height": 72},
    "batch": {"batch_size": 2, "n_iter": 2},
    "hires fix": {**HIRES, "hr_upscaler": "None"},
    "img2img": IMG2IMG,
    "inpaint": SCENARIOS["inpaint"],
}
PLAIN = 2200 * 16 * 16 * 64 * 4  # what it asks for 128x128 in fp32


@pytest.fixture(scope="module", params=["WanVAE", "Qwen2DVAE"])
def wan(host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    host.generate()  # a model is loaded
    host.post(f"/probe/wan?kind={request.param}")
    yield host
    host.post("/probe/wan?kind=")
    host.generate()


def by_neo(host: Host, **parameters: Any) -> Picture:
    """Its own decode and encode: ours fails each time."""
    host.post("/probe/fail?times=-1")
    try:
        made = host.generate(**parameters)
    finally:
        host.post("/probe/fail?times=0")
    assert entry(made.infotext) == "the WebUI's own decode"
    return made


def assert_same(one: Picture, other: Picture) -> None:
    assert len(one.images) == len(other.images)
    for ours, theirs in zip(one.images, other.images, strict=True):
        assert theirs.std() > 5  # something to see
        assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pictures_are_neos(wan: Host, kind: str) -> None:
    own = by_neo(wan, **KINDS[kind])
    ours = wan.generate(**KINDS[kind])
    assert str(entry(ours.infotext)).startswith("full")
    assert_same(ours, own)


@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM", "CPU"])
def test_by_every_exact_way(wan: Host, decode_by: str) -> None:
    own = by_neo(wan)
    ours = wan.generate(guard=[False, decode_by, 0])
    assert entry(ours.infotext, "VAE Guard decode by") == decode_by
    assert_same(ours, own)


def test_the_manager_is_asked_for_less(wan: Host) -> None:
    wan.generate()
    wan.get("/probe/memory-asked")
    wan.generate(guard=[False, "Tiled", 0])
    asked = wan.get("/probe/memory-asked")
    assert asked
    assert max(asked) < PLAIN / 8


def test_its_taesd_is_neos(wan: Host) -> None:
    folder = wan.data / "models/VAE-taesd"
    folder.mkdir(exist_ok=True)
    torch.save(taehv.weights(), folder / "taew2_1.pth")
    with wan.options(sd_vae_decode_method="TAESD"):
        own = wan.generate()
    ours = wan.generate(guard=[False, "TAESD", 0])
    assert entry(own.infotext) is None
    assert str(entry(ours.infotext)).startswith("TAESD")
    assert_same(ours, own)


def test_decode_again(wan: Host) -> None:
    picture = wan.generate(guard=[False, "Tiled", 0], batch_size=2)
    kept = wan.get("/vae-guard/latents")[0]
    assert (kept["width"], kept["height"], kept["decoded_by"]) == (128, 128, "tiled")
    again = wan.decode_again()
    for one, other in zip(again.images, picture.images[-2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_black_picture_is_kept_and_decoded_when_the_vae_is_whole(wan: Host) -> None:
    whole = wan.generate()
    wan.post("/probe/break")
    try:
        black = wan.generate()
        assert not black.images[0].any()
    finally:
        wan.post("/probe/mend")
    kept = wan.get("/vae-guard/latents")[0]
    assert kept["file"]
    assert_same(wan.decode_again(), whole)


@pytest.fixture(scope="module")
def videos(host: Host) -> Iterator[Host]:
    host.generate()
    host.post("/probe/wan?kind=WanVAE&video=true")
    yield host
    host.post("/probe/wan?kind=")
    host.generate()


VIDEO = {"batch_size": 21, "width": 72, "height": 104}  # so many frames


@pytest.mark.parametrize("decode_by", ["Full", "Tiled", "Tiled + RAM", "CPU"])
def test_videos_are_neos(videos: Host, decode_by: str) -> None:
    own = by_neo(videos, **VIDEO)
    videos.get("/probe/memory-asked")
    ours = videos.generate(guard=[False, decode_by, 0], **VIDEO)
    assert len(ours.images) == 21
    assert entry(ours.infotext, "VAE Guard decode by") == decode_by
    assert_same(ours, own)
    asked = videos.get("/probe/memory-asked")
    assert asked
    assert max(asked) < 0.3 * 7000 * 13 * 9 * 64 * 4  # what Neo asks for


def test_a_videos_latents_are_neos(videos: Host) -> None:
    ours = np.array(videos.post("/probe/encode-video"))
    videos.post("/probe/fail?times=-1")
    try:
        own = np.array(videos.post("/probe/encode-video"))
    finally:
        videos.post("/probe/fail?times=0")
    assert 0 < np.abs(ours - own).max() < 1e-4


def test_a_video_is_in_no_list_and_not_lost(videos: Host) -> None:
    """What could not be decoded lies in a file of its own, which the command line decodes."""
    before = videos.get("/vae-guard/latents")
    videos.generate(**VIDEO)
    assert videos.get("/vae-guard/latents") == before
