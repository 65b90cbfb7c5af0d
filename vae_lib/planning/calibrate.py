"""How fast a device works, measured in about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from vae_lib.device import kernels, kinds
from vae_lib.device.kind import Speeds
from vae_lib.device.memory import synchronize
from vae_lib.engine.buffers import DeviceStore, Memory, Workspace
from vae_lib.engine.compute import Compute
from vae_lib.engine.context import Context
from vae_lib.engine.convolution import Convolution, ConvShape, best_shape
from vae_lib.engine.maps import FeatureMap
from vae_lib.engine.normalization import Statistics
from vae_lib.engine.padding import ZEROS
from vae_lib.engine.passes import ConvPass, Stage
from vae_lib.engine.run import run_conv_pass
from vae_lib.planning.cost import CountedMemory

# What the measurement may need at most. It is not made where less than twice as much is free.
BUDGET_BYTES = 80 << 20
CHANNELS, SIDE, GPU_SIDE = 128, 96, 450
SECONDS = 0.25  # for each speed


@torch.inference_mode()
def measure_speeds(device: torch.device, dtype: torch.dtype) -> Speeds:
    """Times a convolution as the engine does it and one of PyTorch's, what comes between convolutions, a pass so small
    that all of its time goes into asking for operations, and (off the CPU) a copy.
    """
    return Speeds(
        multiplications=_multiplications(device, dtype),
        moved=_moved(device, dtype),
        transferred=_transferred(device, dtype),
        dispatch_seconds=_dispatch_seconds(device, dtype),
        plain_multiplications=_plain_multiplications(device, dtype),
    )


def _side(device: torch.device, dtype: torch.dtype) -> int:
    """Of a picture that fits into a CPU's caches, or that keeps a GPU busy for longer than it takes to ask for it."""
    return SIDE if kinds.of(device).in_main_memory else round(GPU_SIDE / math.sqrt(dtype.itemsize))


def _multiplications(device: torch.device, dtype: torch.dtype) -> float:
    memory, side = Memory(device, dtype), _side(device, dtype)
    shape = best_shape(CHANNELS, CHANNELS, "same", side * side, Compute(device, dtype))
    bias_apart = kernels.of(device, dtype).bias_apart
    layer = Convolution(shape, _convolution(CHANNELS, device, dtype), memory, bias_apart)
    workspace = Workspace(memory)
    window = memory.empty(*shape.window(side, side)).fill_(1)
    multiplications = (4 if shape.algorithm == "winograd" else 9) * (side * CHANNELS) ** 2
    return multiplications / _seconds(lambda: layer(window, side, side, workspace), device)


def _moved(device: torch.device, dtype: torch.dtype) -> float:
    """By what the engine does to its bands, on more than most caches hold."""
    if not kernels.of(device, dtype).norms:
        values = torch.ones(4 << 20, device=device, dtype=dtype)
        return 2 * values.nbytes / _seconds(lambda: F.silu(values), device)
    memory, side = Memory(device, dtype), _side(device, dtype)
    band, workspace = memory.empty(CHANNELS, side, side).fill_(1), Workspace(memory)
    out, norm = torch.empty_like(band), nn.GroupNorm(32, CHANNELS, device=device)

    def run() -> None:
        statistics = Statistics()
        statistics.add(band, workspace)
        statistics.normaliser(norm, memory)(out, band, workspace)
        F.silu(out, inplace=True).add_(band)

    return 8 * band.nbytes / _seconds(run, device)  # read once, then read and written, and once more read to be added


def _transferred(device: torch.device, dtype: torch.dtype) -> float:
    if kinds.of(device).in_main_memory:
        return kinds.of(device).speeds(dtype).transferred
    band = torch.ones(4 << 20, device=device, dtype=dtype)
    host = torch.empty(band.shape, dtype=dtype, pin_memory=kinds.of(device).streams)  # as the engine's
    return band.nbytes / _seconds(lambda: host.copy_(band), device)


def _dispatch_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Of a pass over bands so small that all of its time goes into asking for operations, over their number."""
    rows, width, channels = 32, 8, 8
    conv, norm = _convolution(channels, device, dtype), nn.GroupNorm(2, channels, device=device, dtype=dtype)
    stage = Stage(conv, ConvShape(channels, channels, pads=True), norm, "source")
    step = ConvPass("source", (stage,), 2, store="result", statistics="result")

    def run(memory: Memory) -> None:
        source, statistics = memory.empty(channels, rows, width), Statistics()
        statistics.add(source, Workspace(memory))
        context = Context(memory, DeviceStore(), ZEROS, lambda: None)
        context.maps["source"], context.statistics["source"] = FeatureMap.of(source), statistics
        run_conv_pass(step, context)

    counted, memory = CountedMemory(device, dtype, resident=True), Memory(device, dtype)
    run(counted)
    return _seconds(lambda: run(memory), device) / counted.meter.dispatches


def _plain_multiplications(device: torch.device, dtype: torch.dtype) -> float:
    """In a layer of TAESD, on a picture so large that its memory comes from the system each time."""
    channels, side = 64, 384
    module = _convolution(channels, device, dtype)
    picture = torch.ones(1, channels, side, side, device=device, dtype=dtype)
    return 9 * (channels * side) ** 2 / _seconds(lambda: module(picture), device)


def _convolution(channels: int, device: torch.device, dtype: torch.dtype) -> nn.Conv2d:
    """3x3, without the random weights that a new one has: the user's generations count on torch's random numbers."""
    module = nn.Conv2d(channels, channels, 3, device="meta", dtype=dtype).to_empty(device=device)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.01)
    return module


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of the runs that fit into a quarter of a second: other work on the machine only slows them."""
    clock = kinds.of(device).clock

    def once() -> float:
        start = clock()
        work()
        synchronize(device)
        return clock() - start

    once()
    end = time.perf_counter() + SECONDS
    times = [once()]
    while time.perf_counter() < end:
        times.append(once())
    return max(min(times), 1e-9)
