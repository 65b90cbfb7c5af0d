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

from tests.engine.gpu import META, Dispatches, as_on_a_gpu
from tests.networks.small import BF16, FP16, FP32, SMALL, WAN, sd3_like
from tests.planning.plans import candidates
from vae_lib.device import PeakMemory, transfers
from vae_lib.device.transfers import Transfers
from vae_lib.engine import Compute, Edge, Operation, Padding, Tiling, decode, encode_moments
from vae_lib.engine.buffers import HostStore
from vae_lib.engine.padding import SEAMLESS, ZEROS
from vae_lib.networks import Architecture, AutoencoderKLConfig, Network, WanConfig, build
from vae_lib.planning import Route, Work
from vae_lib.planning.plan import WHOLE, cost_of

SD15 = AutoencoderKLConfig()
MIB = 1 << 20


class Nowhere(Transfers):
    """Copies nothing: there are no numbers."""

    def _copy(self, lane: str, target: Tensor, source: Tensor) -> Any:
        assert target.shape == source.shape
        assert {target.device.type, source.device.type} == {"cpu", "meta"}


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(transfers, "kind_for", lambda device: Nowhere if device == META else None)
    monkeypatch.setattr(  # main memory that nobody writes to costs nothing
        HostStore, "_empty", lambda self, like: torch.empty(like.shape, dtype=like.dtype, device="cpu")
    )
    with as_on_a_gpu("meta"):
        yield


@functools.cache
def network(config: Architecture, dtype: torch.dtype) -> Network:
    with torch.device(META):
        return build(config).to(dtype).requires_grad_(False)


def source(work: Work) -> Tensor:
    assert work.config is not None
    decodes = work.operation is Operation.DECODE
    shape = (work.config.latent_channels, work.height, work.width) if decodes else (3, *work.pixels)
    return torch.empty(work.batch, *shape, dtype=work.dtype, device=META)


def run(work: Work, given: Tensor, tiling: Tiling) -> Tensor:
    assert work.config is not None
    vae, compute = network(work.config, work.dtype), Compute(META, work.dtype, work.padding)
    if work.operation is Operation.DECODE:
        return decode(vae, given, tiling, compute)
    return encode_moments(vae, given, tiling, compute)[0]


def picture(side: int, operation: str = "decode", **options: Any) -> Work:
    return Work(SD15, Operation(operation), side // 8, side // 8, 1, META, FP16, **options)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("padding", [ZEROS, SEAMLESS, Padding(Edge.REFLECT, Edge.ZEROS)], ids=str)
@pytest.mark.parametrize("offload", [False, True])
def test_nothing_waits_for_the_device(offload: bool, padding: Padding, operation: str) -> None:
    for dtype in (FP32, FP16):
        for config in (SMALL, sd3_like(ch=32, ch_mult=(1,), num_res_blocks=1), WAN):
            work = Work(config, Operation(operation), 7, 5, 2, META, dtype, padding=padding)
            for tiling in (Tiling(1 << 24, 0, offload), Tiling(1 << 13, 2, offload, 1 << 12)):
                shape = (2, 3, *work.pixels) if operation == "decode" else (2, config.latent_channels, 7, 5)
                assert run(work, source(work), tiling).shape == shape


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD])
@pytest.mark.parametrize("side", [512, 1024])
def test_peaks_at_real_sizes(side: int, route: Route, operation: str) -> None:
    """The plan that is fastest and, of the small picture, the one that takes least."""
    work = picture(side, operation)
    plans = candidates(work, route)
    chosen = [min(plans, key=lambda p: p.seconds), min(plans, key=lambda p: p.peak_bytes)]
    network(SD15, FP16)  # made beforehand: the fp32 weights that it starts from would muddle the count
    for plan in chosen[: 2 if side == 512 else 1]:
        assert plan.tiling is not None
        given = source(work)
        with PeakMemory(META) as peak:
            run(work, given, plan.tiling)
        assert peak.bytes <= plan.peak_bytes <= 1.01 * peak.bytes


STREAMS = {"whole": Tiling(WHOLE), "bands": Tiling(32 * MIB), "rows": Tiling(2 * MIB)}


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("tiling", STREAMS.values(), ids=STREAMS.keys())
def test_a_stream_takes_what_is_counted(tiling: Tiling, operation: str) -> None:
    """Bytes and operations of Qwen-Image's VAE at 512x512, in bfloat16."""
    work = Work(WanConfig(), Operation(operation), 64, 64, 1, META, BF16)
    network(WanConfig(), BF16)
    given, counted = source(work), cost_of(work, tiling)
    with PeakMemory(META) as peak, Dispatches() as dispatched:
        run(work, given, tiling)
    assert peak.bytes <= counted.peak_bytes <= 1.02 * peak.bytes
    assert abs(counted.dispatches - dispatched.count) <= 8  # of weights that are one array for three projections


@pytest.mark.parametrize(
    ("latents", "peak"), [((64, 64), 69), ((128, 128), 173), ((180, 320), 486), ((512, 512), 1152)], ids=str
)
def test_a_stream_takes_little(latents: tuple[int, int], peak: int) -> None:
    """Of 1,731 (in float32), 3,459, 12,158 and 55,321 MiB by diffusers' own decode."""
    work = Work(WanConfig(), Operation.DECODE, *latents, 1, META, BF16)
    plans = [p for p in candidates(work, Route.TILED) if p.peak_bytes <= peak * MIB]
    assert min(plan.bands for plan in plans) < 120
    assert cost_of(work, Tiling(WHOLE)).dispatches <= 800


TILINGS = {
    "whole": Tiling(WHOLE),
    "bands": Tiling(64 * MIB),
    "odd bands": Tiling(5 * MIB),
    "recompute": Tiling(16 * MIB, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("padding", [ZEROS, SEAMLESS, Padding(Edge.CIRCULAR, Edge.REFLECT)], ids=str)
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("size", [(64, 64), (97, 63)], ids=str)
def test_dispatches_are_counted_exactly(
    size: tuple[int, int], tiling: Tiling, padding: Padding, operation: str
) -> None:
    work = Work(SD15, Operation(operation), *size, 1, META, FP16, padding=padding)
    given = source(work)
    with Dispatches() as dispatched:
        run(work, given, tiling)
    ours = sum(dispatched.names.get(name, 0) for name in ("aten.split.Tensor", "aten.clamp.default"))
    counted = cost_of(work, tiling).dispatches
    assert abs(counted - dispatched.count) <= 2 * ours  # chunk is one operation or two, by PyTorch's version


@pytest.mark.parametrize("side", [512, 1024, 2048])
def test_a_whole_picture_takes_few_dispatches(side: int) -> None:
    """The plain network takes 133; a norm and its SiLU are six operations of ours, or one and a half."""
    cost = cost_of(picture(side), Tiling(WHOLE))
    assert cost.dispatches <= 700
    if side == 1024:
        assert cost.peak_bytes <= 1300 * MIB


@pytest.mark.parametrize(("side", "peak", "most"), [(1024, 777, 3500), (2048, 2334, 12000)])
def test_bands_take_few_dispatches(side: int, peak: int, most: int) -> None:
    plans = [p for p in candidates(picture(side), Route.FULL) if p.peak_bytes <= peak * MIB]
    assert min(cost_of(picture(side), p.tiling).dispatches for p in plans if p.tiling is not None) <= most


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (121, 87), (256, 192)], ids=str)
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD])
def test_there_are_few_shapes_of_convolutions(
    route: Route, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuDNN in its benchmark mode and MIOpen search for the best kernel of each shape once, for up to seconds."""
    shapes: set[Any] = set()
    convolve = F.conv2d

    def seen(x: Any, weight: Any, *rest: Any) -> Any:
        shapes.add((tuple(x.shape), tuple(weight.shape), *rest[1:]))
        return convolve(x, weight, *rest)

    work = Work(SD15, Operation.DECODE, *size, 1, META, FP16)
    plans = candidates(work, route)
    for plan in (min(plans, key=lambda p: p.seconds), min(plans, key=lambda p: p.peak_bytes)):
        assert plan.tiling is not None
        shapes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(F, "conv2d", seen)
            cost_of.__wrapped__(work, plan.tiling)
        assert 5 < len(shapes) <= 20
