"""TAESD in tiles is TAESD: no seam, whatever the side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.networks.small import CPU, FP32, PADDINGS, distance, images, padded, taesd
from vae_lib.engine import Compute, Edge, Padding
from vae_lib.engine.padding import SEAMLESS, ZEROS
from vae_lib.engine.programs import taesd as tiny
from vae_lib.errors import Cancelled, CheckpointError, InputError
from vae_lib.networks import TAESD

COMPUTE = Compute(CPU, FP32)


def scaled_latents(channels: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@settings(max_examples=8)
@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)) | st.just((1, 60)),
    side=st.integers(4, 16),
    padding=st.sampled_from(PADDINGS),
    channels=st.sampled_from([4, 16, 32]),
)
def test_tiles_are_exact(size: tuple[int, int], side: int, padding: Padding, channels: int) -> None:
    if Edge.REFLECT in (padding.height, padding.width):
        assume(min(size) > 1)
    plain = padded(taesd(channels), padding)
    latents = scaled_latents(channels, *size)
    picture = tiny.decode(taesd(channels), latents, side, replace(COMPUTE, padding=padding))
    assert distance(picture, plain.decode(latents)) < 1e-5
    pictures = images(8 * size[0], 8 * size[1])
    encoded = tiny.encode(taesd(channels), pictures, side, replace(COMPUTE, padding=padding))
    assert distance(encoded, plain.encode(pictures)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 32])
@pytest.mark.parametrize("padding", [ZEROS, SEAMLESS, Padding(Edge.CIRCULAR, Edge.REFLECT)], ids=str)
def test_tiles_further_from_each_other_than_the_reach(padding: Padding, channels: int) -> None:
    """Tiles that do not see the whole picture, so a halo that is too small would show."""
    latents = scaled_latents(channels, 2, 60)
    assert taesd(channels).decoder_reach < 30
    plain = padded(taesd(channels), padding)
    picture = tiny.decode(taesd(channels), latents, 20, replace(COMPUTE, padding=padding))
    assert distance(picture, plain.decode(latents)) < 1e-5


@pytest.mark.parametrize("padding", [ZEROS, Padding(Edge.REFLECT, Edge.CIRCULAR)], ids=str)
def test_tiles_of_a_videos(padding: Padding) -> None:
    video = taesd(16, video=True)
    latents = scaled_latents(16, 24, 1, 1)
    if padding.height is Edge.REFLECT:
        latents = latents[:, :, :3]
    picture = tiny.decode(video, latents, 4, replace(COMPUTE, padding=padding))
    assert distance(picture, padded(video, padding).decode(latents)) < 1e-5
    with pytest.raises(CheckpointError, match="only a decoder"):
        tiny.encode(video, images(16, 16), 2, COMPUTE)


def test_a_halo_one_row_too_small_would_show() -> None:
    """Tiles read what the network's reach asks for, up to the picture's edge."""
    places = list(tiny.Grid(50, 7, 20, 3))
    assert [tile.inner for tile in places] == [(0, 20, 0, 7), (20, 40, 0, 7), (40, 50, 0, 7)]
    assert [tile.outer for tile in places] == [(0, 23, 0, 7), (17, 43, 0, 7), (37, 50, 0, 7)]
    assert next(iter(tiny.Grid(50, 7, 20, 3, SEAMLESS))).outer == (-3, 23, -3, 10)
    assert next(iter(tiny.Grid(50, 7, 20, 3, Padding(width=Edge.CIRCULAR)))).outer == (0, 23, -3, 10)


def test_what_is_too_narrow_to_be_reflected_is_told() -> None:
    with pytest.raises(InputError, match="one pixel wide or high"):
        tiny.decode(taesd(), scaled_latents(4, 1, 3), 8, replace(COMPUTE, padding=Padding.of(Edge.REFLECT)))


def test_batches_progress_and_cancelling() -> None:
    latents, calls = scaled_latents(4, 3, 9, 2), []
    picture = tiny.decode(taesd(), latents, 5, replace(COMPUTE, progress=lambda *call: calls.append(call)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert distance(picture, taesd().decode(latents)) < 1e-5
    with pytest.raises(Cancelled):
        tiny.decode(taesd(), latents, 5, replace(COMPUTE, cancelled=lambda: True))


def test_the_missing_half_is_named() -> None:
    with pytest.raises(CheckpointError, match="only an encoder"):
        tiny.decode(TAESD(4, decoder=False), scaled_latents(4, 2, 2), 2, COMPUTE)
    with pytest.raises(CheckpointError, match="only a decoder"):
        tiny.encode(TAESD(4, encoder=False), images(16, 16), 2, COMPUTE)
