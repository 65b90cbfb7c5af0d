"""Videos by Wan's VAE in bands that go through all frames: what the published network gives, by every plan."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.gpu import as_on_a_gpu
from tests.networks.small import CPU, FP32, FP64, WAN, WAN22, distance, images, network
from tests.networks.videos import FULL_WIDTH, SHAPES, published
from vae_lib.engine import Compute, Edge, Padding, Tiling, decode, encode_moments
from vae_lib.engine.padding import SEAMLESS, ZEROS
from vae_lib.errors import Cancelled
from vae_lib.networks import WanVAE
from vae_lib.planning.plan import WHOLE

ROWS = Tiling(64, attention_bytes=1 << 10)
BANDS = Tiling(1 << 14, attention_bytes=1 << 14)
FULL = Tiling(WHOLE)
OFFLOAD = Tiling(1 << 13, offload=True, attention_bytes=1 << 12)
tilings = pytest.mark.parametrize("tiling", [ROWS, BANDS, FULL, OFFLOAD], ids=["rows", "bands", "full", "offload"])
kinds = pytest.mark.parametrize("kind", SHAPES)

VIDEOS = {"2.1": replace(WAN, times=(1, 2, 2)), "2.2": replace(WAN22, times=(1, 2, 2))}


@functools.lru_cache(maxsize=2)
def both(kind: str) -> tuple[Any, WanVAE]:
    return published(SHAPES[kind], FP64)


def latents_of(vae: WanVAE, frames: int, height: int, width: int, dtype: torch.dtype = FP64) -> Tensor:
    """(frames, channels, height, width)"""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(frames, vae.latent_channels, height, width, generator=generator).to(dtype)


def as_video(frames: Tensor) -> Tensor:
    """(T, C, h, w) as diffusers has it, (1, C, T, h, w)."""
    return frames.transpose(0, 1)[None]


def run(vae: WanVAE, latents: Tensor, tiling: Tiling, padding: Padding = ZEROS) -> Tensor:
    return decode(vae, latents, tiling, Compute(CPU, latents.dtype, padding))


@tilings
@kinds
@pytest.mark.parametrize(("frames", "size"), [(1, (2, 3)), (2, (1, 1)), (3, (9, 2)), (5, (4, 3))], ids=str)
def test_the_frames_are_the_published_networks(kind: str, frames: int, size: tuple[int, int], tiling: Tiling) -> None:
    theirs, ours = both(kind)
    z = latents_of(ours, frames, *size)
    made = run(ours, z, tiling).clamp(-1, 1)
    assert len(made) == 1 + 4 * (frames - 1)
    assert distance(as_video(made), theirs.decode(as_video(z)).sample) < 1e-10


@tilings
@kinds
@pytest.mark.parametrize(("frames", "size"), [(1, (2, 3)), (5, (1, 1)), (9, (5, 2)), (12, (3, 2))], ids=str)
def test_the_latents_are_the_published_networks(kind: str, frames: int, size: tuple[int, int], tiling: Tiling) -> None:
    """Of frames that are no multiple of four and one more, the last ones are left out."""
    theirs, ours = both(kind)
    scale = ours.downscale
    video = images(scale * size[0], scale * size[1], batch=frames).to(FP64)
    wanted = theirs.encode(as_video(video)).latent_dist
    mean, log_variance = encode_moments(ours, video, tiling, Compute(CPU, FP64))
    assert distance(as_video(mean), wanted.mean) < 1e-10
    assert distance(as_video(log_variance), wanted.logvar.clamp(-30, 20)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 5, 9, 21])
def test_of_full_width(frames: int) -> None:
    theirs, ours = published(FULL_WIDTH, FP32)
    z = latents_of(ours, frames, 3, 5, FP32)
    wanted = theirs.decode(as_video(z)).sample
    for tiling in (ROWS, FULL, OFFLOAD) if frames < 9 else (Tiling(1 << 20),):
        assert distance(as_video(run(ours, z, tiling).clamp(-1, 1)), wanted) < 5e-5


@kinds
@pytest.mark.parametrize("padding", [SEAMLESS, Padding(Edge.ZEROS, Edge.CIRCULAR), Padding.of(Edge.REFLECT)], ids=str)
def test_every_plan_gives_the_same_with_any_padding(kind: str, padding: Padding) -> None:
    vae = network(VIDEOS[kind], FP64)
    z = latents_of(vae, 3, 6, 3)
    wanted = run(vae, z, FULL, padding)
    assert distance(wanted, run(vae, z, FULL)) > 1e-3
    for tiling in (ROWS, BANDS, OFFLOAD):
        assert distance(run(vae, z, tiling, padding), wanted) < 1e-10


@tilings
@kinds
def test_exact_by_a_gpus_kernels(kind: str, tiling: Tiling) -> None:
    """Whose convolutions take the windows of three frames as one."""
    vae = network(VIDEOS[kind])
    z = latents_of(vae, 3, 5, 3, FP32)
    wanted = run(network(VIDEOS[kind], FP64), z.double(), FULL)
    with as_on_a_gpu("cpu"):
        assert distance(run(vae, z, tiling), wanted) < 1e-5


@kinds
def test_the_first_frame_is_the_picture(kind: str) -> None:
    """Nothing after it changes it; and of one latent it is all there is."""
    vae = network(VIDEOS[kind], FP64)
    z = latents_of(vae, 3, 4, 3)
    first = run(vae, z[:1], BANDS)
    assert distance(run(vae, z, BANDS)[:1], first) < 1e-10
    later = z.clone()
    later[2] += 1
    assert torch.equal(run(vae, later, BANDS)[:5], run(vae, z, BANDS)[:5])


def test_progress_and_stop() -> None:
    vae = network(VIDEOS["2.1"])
    z = latents_of(vae, 3, 5, 3, FP32)
    seen: list[tuple[int, int]] = []
    compute = Compute(CPU, FP32, progress=lambda done, total: seen.append((done, total)))
    decode(vae, z, ROWS, compute)
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
    with pytest.raises(Cancelled):
        decode(vae, z, ROWS, replace(compute, cancelled=lambda: len(seen) > seen[0][1] + 5))
