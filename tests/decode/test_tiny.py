"""TAESD in tiles is TAESD: no seam, whatever the side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decode.helpers import CPU, FP32, circular, distance, images, taesd
from vae_lib.decode import Compute, tiny
from vae_lib.errors import Cancelled, CheckpointError
from vae_lib.networks import TAESD

COMPUTE = Compute(CPU, FP32)


def scaled_latents(channels: int, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))


@settings(max_examples=8)
@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 10)) | st.just((1, 60)),
    side=st.integers(4, 16),
    wrap=st.booleans(),
    channels=st.sampled_from([4, 16]),
)
def test_tiles_are_exact(size: tuple[int, int], side: int, wrap: bool, channels: int) -> None:
    plain = circular(taesd(channels)) if wrap else taesd(channels)
    latents = scaled_latents(channels, *size)
    picture = tiny.decode(taesd(channels), latents, side, replace(COMPUTE, wrap=wrap))
    assert distance(picture, plain.decode(latents)) < 1e-5
    pictures = images(8 * size[0], 8 * size[1])
    encoded = tiny.encode(taesd(channels), pictures, side, replace(COMPUTE, wrap=wrap))
    assert distance(encoded, plain.encode(pictures)) < 1e-5


@pytest.mark.parametrize("wrap", [False, True])
def test_tiles_further_from_each_other_than_the_reach(wrap: bool) -> None:
    """Tiles that do not see the whole picture, so a halo that is too small would show."""
    latents = scaled_latents(4, 2, 60)
    assert taesd().decoder_reach < 30
    plain = circular(taesd()) if wrap else taesd()
    picture = tiny.decode(taesd(), latents, 20, replace(COMPUTE, wrap=wrap))
    assert distance(picture, plain.decode(latents)) < 1e-5


def test_a_halo_one_row_too_small_would_show() -> None:
    """``tiles`` gives what the network's reach asks for, up to the picture's edge."""
    places = list(tiny.tiles(50, 7, 20, 3, wrap=False))
    assert [tile.inner for tile in places] == [(0, 20, 0, 7), (20, 40, 0, 7), (40, 50, 0, 7)]
    assert [tile.outer for tile in places] == [(0, 23, 0, 7), (17, 43, 0, 7), (37, 50, 0, 7)]
    wrapped = next(tiny.tiles(50, 7, 20, 3, wrap=True))
    assert wrapped.outer == (-3, 23, -3, 10)


def test_batches_progress_and_cancelling() -> None:
    latents, calls = scaled_latents(4, 3, 9, 2), []
    picture = tiny.decode(
        taesd(),
        latents,
        5,
        replace(COMPUTE, progress=lambda *call: calls.append(call)),
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert distance(picture, taesd().decode(latents)) < 1e-5
    with pytest.raises(Cancelled):
        tiny.decode(taesd(), latents, 5, replace(COMPUTE, cancelled=lambda: True))


def test_the_missing_half_is_named() -> None:
    with pytest.raises(CheckpointError, match="only an encoder"):
        tiny.decode(TAESD(4, decoder=False), scaled_latents(4, 2, 2), 2, COMPUTE)
    with pytest.raises(CheckpointError, match="only a decoder"):
        tiny.encode(TAESD(4, encoder=False), images(16, 16), 2, COMPUTE)
