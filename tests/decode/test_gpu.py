"""The way a GPU goes, at real sizes, on PyTorch's meta device: it knows shapes and bytes, but no numbers.

What would make the CPU wait for the device cannot run there, and the bytes alive are those that a GPU would hold, but
for what PyTorch's own kernels take.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.decode.helpers import FP16, FP32, SMALL, sd3_like
from vae_lib.decode import PeakMemory, Route, Tiling, Work, candidates, decode, encode_moments, transfers
from vae_lib.decode.buffers import HostStore
from vae_lib.decode.plan import cost_of
from vae_lib.decode.transfers import Transfers
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig

META = torch.device("meta")
SD15 = AutoencoderKLConfig()


class Nowhere(Transfers):
    """Copies nothing: there are no numbers."""

    def _copy(self, lane: str, target: Tensor, source: Tensor) -> Any:
        assert target.shape == source.shape
        assert {target.device.type, source.device.type} == {"cpu", "meta"}


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """As cuDNN's, channels last in and out; the meta device's own may put them first."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    rows, columns = (
        (side - kernel) // stride + 1 for side, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    return x.new_empty(1, rows, columns, weight.shape[0]).permute(0, 3, 1, 2)


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transfers, "kind_for", lambda device: Nowhere if device == META else None)
    monkeypatch.setattr(  # main memory that nobody writes to costs nothing
        HostStore, "_empty", lambda self, like: torch.empty(like.shape, dtype=like.dtype, device="cpu")
    )
    monkeypatch.setattr(F, "conv2d", conv2d)
    cost_of.cache_clear()
    yield
    cost_of.cache_clear()


@functools.cache
def network(config: AutoencoderKLConfig, dtype: torch.dtype) -> AutoencoderKL:
    with torch.device(META):
        return AutoencoderKL(config).to(dtype).requires_grad_(False)


def source(work: Work) -> Tensor:
    assert work.config is not None
    shape = (
        (work.config.latent_channels, work.height, work.width)
        if work.operation == "decode"
        else (3, *work.pixels)
    )
    return torch.empty(work.batch, *shape, dtype=work.dtype, device=META)


def run(work: Work, given: Tensor, tiling: Tiling) -> Tensor:
    assert work.config is not None
    vae = network(work.config, work.dtype)
    if work.operation == "decode":
        return decode(vae, given, tiling, device=META, dtype=work.dtype, wrap=work.wrap)
    return encode_moments(vae, given, tiling, device=META, dtype=work.dtype, wrap=work.wrap)[0]


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_nothing_waits_for_the_device(offload: bool, wrap: bool, operation: str) -> None:
    for dtype in (FP32, FP16):
        for config in (SMALL, sd3_like(ch=32, ch_mult=(1,), num_res_blocks=1)):
            work = Work(config, operation, 7, 5, 2, META, dtype, wrap=wrap)
            for tiling in (Tiling(1 << 24, 0, offload), Tiling(1 << 13, 2, offload, 1 << 12)):
                shape = (2, 3, *work.pixels) if operation == "decode" else (2, config.latent_channels, 7, 5)
                assert run(work, source(work), tiling).shape == shape


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD])
@pytest.mark.parametrize("side", [512, 1024])
def test_peaks_at_real_sizes(side: int, route: Route, operation: str) -> None:
    """The plan that is fastest and, of the small picture, the one that takes least."""
    work = Work(SD15, operation, side // 8, side // 8, 1, META, FP16)
    plans = candidates(work, route)
    chosen = [min(plans, key=lambda p: p.seconds), min(plans, key=lambda p: p.peak_bytes)]
    network(SD15, FP16)  # made beforehand: the fp32 weights that it starts from would muddle the count
    for plan in chosen[: 2 if side == 512 else 1]:
        assert plan.tiling is not None
        given = source(work)
        with PeakMemory(META) as peak:
            run(work, given, plan.tiling)
        assert peak.bytes <= plan.peak_bytes <= 1.1 * peak.bytes
