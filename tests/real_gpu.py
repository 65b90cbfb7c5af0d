"""A real CUDA card, for the tests that need one: networks of full size, and ways to leave little of its memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks.small import FP32, images, latents_for
from tests.planning.plans import candidates
from vae_lib.decode import Ladder
from vae_lib.device.memory import release_cached
from vae_lib.engine import Operation, decode, encode_moments
from vae_lib.engine.compute import Compute
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig
from vae_lib.planning import Plan, Preference, Route, Work

GPU = torch.device("cuda")
MIB = 1 << 20
ROUTES = (Route.FULL, Route.TILED, Route.OFFLOAD)
SD15 = AutoencoderKLConfig()
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@functools.cache
def vae(dtype: torch.dtype) -> AutoencoderKL:
    """Stable Diffusion's, with random weights that every dtype rounds on its own."""
    torch.manual_seed(1)
    return AutoencoderKL(SD15).to(GPU, dtype).eval().requires_grad_(False)


def source(operation: Operation, side: int, dtype: torch.dtype = FP32) -> Tensor:
    """Latents or a picture, for or of so many pixels a side."""
    decodes = operation is Operation.DECODE
    made = latents_for(SD15, side // 8, side // 8) if decodes else images(side, side)
    return made.to(GPU, dtype)


def plain(operation: Operation, given: Tensor, dtype: torch.dtype = FP32) -> Tensor:
    """The plain network's result, in float32 numbers."""
    net, given = vae(dtype), given.to(dtype)
    with torch.no_grad():
        result = net.decode(given) if operation is Operation.DECODE else net.encode_moments(given)[0]
    return result.float()


def ours(operation: Operation, given: Tensor, plan: Plan) -> Tensor:
    assert plan.tiling is not None
    compute = Compute(GPU, plan.dtype)
    if operation is Operation.DECODE:
        return decode(vae(plan.dtype), given, plan.tiling, compute)
    return encode_moments(vae(plan.dtype), given, plan.tiling, compute)[0]


def plans(operation: Operation, side: int, route: Route, dtype: torch.dtype) -> list[Plan]:
    work = Work(SD15, operation, side // 8, side // 8, 1, GPU, dtype)
    return [plan for plan in candidates(work, route) if plan.tiling is not None]


def ladder(dtype: torch.dtype, order: tuple[Route, ...] | Preference, **options: Any) -> Ladder:
    return Ladder(vae(dtype), device=GPU, dtype=dtype, order=order, **options)


def error(result: Tensor, wanted: Tensor) -> float:
    """Root mean square."""
    return float((result.float() - wanted).square().mean().sqrt())


@contextmanager
def only(size: int) -> Iterator[None]:
    """PyTorch may take so many bytes more. The driver, and so the planner, does not know of it."""
    release_cached(GPU)
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + size) / total, 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        release_cached(GPU)


@contextmanager
def crowded(free: int) -> Iterator[None]:
    """All of the card is taken but so many bytes."""
    release_cached(GPU)
    ballast: list[Tensor] = []
    for step in (4 << 30, 64 << 20, 10 << 20):  # each in a segment of its own; all at once cannot be had
        with suppress(torch.cuda.OutOfMemoryError):
            while torch.cuda.mem_get_info(GPU)[0] - step >= free:
                ballast.append(torch.empty(step, dtype=torch.uint8, device=GPU))
    try:
        yield
    finally:
        ballast.clear()
        release_cached(GPU)
