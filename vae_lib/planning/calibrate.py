"""This machine's rates, measured once in about a second and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vae_lib.device import kernels
from vae_lib.device.memory import free_bytes, synchronize
from vae_lib.engine.buffers import DeviceStore, FeatureMap, Memory, Workspace
from vae_lib.engine.compute import Compute
from vae_lib.engine.convolution import Convolution, ConvShape, best_shape
from vae_lib.engine.normalization import Statistics
from vae_lib.engine.padding import ZEROS
from vae_lib.engine.passes import ConvPass, Stage
from vae_lib.engine.run import Context, run_conv_pass
from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.planning.cost import CountedMemory
from vae_lib.planning.plan import Rates, default_rates, dtype_name

# What the measurement may need at most. It is not tried where twice as much is not free.
BUDGET_BYTES = 80 << 20
SWITCH = "VAE_GUARD_CALIBRATE"
CHANNELS, SIDE, GPU_SIDE = 128, 96, 450
SECONDS = 0.25  # for each rate
SPEEDS = ("multiplications", "moved", "transferred", "dispatch_seconds", "plain_multiplications")
_in_use: dict[str, Rates] = {}  # read or measured by this process already


def rates_for(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Measured rates, from the cache or from a measurement made now.

    Returns:
        None, for the defaults, when the environment variable VAE_GUARD_CALIBRATE is 0, when nothing is cached and
        less than 160 MiB is free, or when the measurement fails.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    key = device_key(device, dtype)
    known = _in_use.get(key) or _read().get(key)
    if known is not None:
        return _in_use.setdefault(key, known)
    try:
        if free_bytes(device) < 2 * BUDGET_BYTES:
            return None
        rates = measure_rates(device, dtype)
    except (RuntimeError, MemoryError):  # out of memory, or an operation that this device lacks
        return None
    _in_use[key] = rates
    _write(key, rates)
    return rates


@torch.inference_mode()
def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Times a convolution as the engine does it and one of PyTorch's, what comes between convolutions, a pass so small
    that all of its time goes into asking for operations, and (off the CPU) a copy.
    """
    return Rates(
        multiplications=_multiplications(device, dtype),
        moved=_moved(device, dtype),
        transferred=_transferred(device, dtype),
        dispatch_seconds=_dispatch_seconds(device, dtype),
        plain_multiplications=_plain_multiplications(device, dtype),
    )


def _side(device: torch.device, dtype: torch.dtype) -> int:
    """Of a picture that fits into a CPU's caches, or that keeps a GPU busy for longer than it takes to ask for it."""
    return SIDE if device.type == "cpu" else round(GPU_SIDE / math.sqrt(dtype.itemsize))


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

    return (
        8 * band.nbytes / _seconds(run, device)
    )  # read once, then read and written, and once more read to be added


def _transferred(device: torch.device, dtype: torch.dtype) -> float:
    if device.type == "cpu":
        return default_rates(device, dtype).transferred
    band = torch.ones(4 << 20, device=device, dtype=dtype)
    host = torch.empty(band.shape, dtype=dtype, pin_memory=device.type == "cuda")  # as the engine's
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
    """In a layer of TAESD, on a picture so large that its memory comes anew from the system."""
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


def cache_path(name: str = "rates.json") -> Path:
    """Where what was measured is kept: below XDG_CACHE_HOME, LOCALAPPDATA on Windows, or ~/.cache."""
    folder = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(folder) if folder else Path(os.path.expanduser("~/.cache"))) / "vae-guard" / name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The whole of it or nothing. A folder that cannot be written to is no error."""
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, lambda aside: aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of the runs that fit into a quarter of a second: other work on the machine only slows them.

    On the CPU this thread's own time counts, not that in which it had to give way (Windows counts it too coarsely).
    """
    clock = time.thread_time if device.type == "cpu" and sys.platform != "win32" else time.perf_counter

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


@functools.cache
def driver() -> str:
    """The GPU driver's version, as its own tool says; of ROCm the HIP version that PyTorch was built for."""
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return "driver unknown"
    lines = told.stdout.split()
    return f"driver {lines[0]}" if told.returncode == 0 and lines else "driver unknown"


def device_key(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement holds for: the device, its driver, PyTorch, the dtype, and the CPU's threads."""
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {driver()}"
    else:
        name = f"{device.type} {platform.node()} {platform.processor() or platform.machine()}"
    return f"{name}; torch {torch.__version__}; {dtype_name(dtype)}; {torch.get_num_threads()} threads"


def _read() -> dict[str, Rates]:
    """The rates kept; those that cannot be read are left out."""
    found: dict[str, Rates] = {}
    for key, values in read_json(cache_path()).items():
        try:
            speeds = {name: float(values[name]) for name in SPEEDS}
        except (TypeError, ValueError, KeyError):
            continue
        if all(math.isfinite(rate) and rate > 0 for rate in speeds.values()):
            found[key] = Rates(**speeds)  # type: ignore[arg-type]
    return found


def _write(key: str, rates: Rates) -> None:
    """Adds the rates to the cache, whole or not at all. A folder that cannot be written to is no error."""
    path = cache_path()
    kept = {k: {name: getattr(r, name) for name in SPEEDS} for k, r in (_read() | {key: rates}).items()}
    write_json(path, kept)
