"""This machine's rates, measured once in about a second and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vae_lib.decode.buffers import Workspace
from vae_lib.decode.convolution import Convolution, best_shape
from vae_lib.decode.devices import free_bytes
from vae_lib.decode.plan import Rates, default_rates, dtype_name
from vae_lib.errors import InputError
from vae_lib.files import write_atomically

# What the measurement may need at most. It is not tried where twice as much is not free.
BUDGET_BYTES = 64 << 20
SWITCH = "VAE_GUARD_CALIBRATE"
CHANNELS, SIDE = 128, 96
SECONDS = 0.25  # for each rate
_in_use: dict[str, Rates] = {}  # read or measured by this process already


def rates_for(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Measured rates, from the cache or from a measurement made now.

    Returns:
        None, for the defaults, when the environment variable VAE_GUARD_CALIBRATE is 0, when nothing is cached and
        less than 128 MiB is free, or when the measurement fails.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    key = _key(device, dtype)
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
    """Times a convolution as the engine does it, an activation and, off the CPU, a copy.

    The seconds of a band are the default's.
    """
    known = default_rates(device, dtype)
    shape = best_shape(CHANNELS, CHANNELS, "same", SIDE * SIDE, device, dtype)
    # Not the random weights that a new one has: the user's generations count on torch's random numbers.
    module = nn.Conv2d(CHANNELS, CHANNELS, 3, device="meta", dtype=dtype).to_empty(device=device)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.01)
    layer, workspace = Convolution(shape, module, device, dtype), Workspace(device)
    window = torch.ones(shape.window(SIDE, SIDE), device=device, dtype=dtype)
    convolution = _seconds(lambda: layer(window, SIDE, SIDE, workspace), device)
    # Larger than most caches, and SiLU rather than a copy: this is what the engine does to its bands.
    values = torch.ones(4 << 20, device=device, dtype=dtype)
    activation = _seconds(lambda: F.silu(values), device)
    transferred = known.transferred
    if device.type != "cpu":
        host = torch.empty(window.shape, dtype=dtype)
        transferred = window.nbytes / _seconds(lambda: host.copy_(window), device)
    return Rates(
        shape.multiplications(SIDE, SIDE) / convolution,
        2 * values.nbytes / activation,
        transferred,
        known.band_seconds,
    )


def cache_path() -> Path:
    """Where the rates are kept: below XDG_CACHE_HOME, LOCALAPPDATA on Windows, or ~/.cache."""
    name = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    folder = os.environ.get(name)
    return (Path(folder) if folder else Path(os.path.expanduser("~/.cache"))) / "vae-guard" / "rates.json"


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of the runs that fit into a quarter of a second: other work on the machine only slows them."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    end = time.perf_counter() + SECONDS
    times = [once()]
    while time.perf_counter() < end:
        times.append(once())
    return max(min(times), 1e-9)


def _key(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} {platform.node()} {platform.processor() or platform.machine()}"
    return f"{name}; torch {torch.__version__}; {dtype_name(dtype)}; {torch.get_num_threads()} threads"


def _read() -> dict[str, Rates]:
    """The rates kept; those that cannot be read are left out."""
    try:
        stored: Any = json.loads(cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    found: dict[str, Rates] = {}
    for key, values in stored.items() if isinstance(stored, dict) else ():
        try:
            rates = Rates(**{name: float(value) for name, value in values.items()})
        except (TypeError, ValueError, AttributeError):
            continue
        if all(math.isfinite(rate) and rate > 0 for rate in dataclasses.astuple(rates)):
            found[key] = rates
    return found


def _write(key: str, rates: Rates) -> None:
    """Adds the rates to the cache, whole or not at all. A folder that cannot be written to is no error."""
    path = cache_path()
    kept = {name: dataclasses.asdict(value) for name, value in (_read() | {key: rates}).items()}
    with contextlib.suppress(OSError, InputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda aside: aside.write_text(json.dumps(kept, indent=1), encoding="utf-8"))
