"""What a compute device has free, and what it can allocate at once."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
from collections.abc import Callable
from typing import Any

import torch

from vae_lib.errors import InputError

WORTH_GIVING_BACK = 16 << 20  # bytes


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best one there is.

    Raises:
        InputError: when the device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"There is no device called {name!r}; use cpu, cuda or mps.") from error
    there = {"cpu": True, "cuda": cuda, "mps": mps}
    if not there.get(device.type, False):
        raise InputError(f"This machine has no usable {device.type} device; use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"There is no {device}; this machine has {torch.cuda.device_count()} CUDA device(s)."
        )
    return device


def usual_dtype(device: torch.device) -> torch.dtype:
    """What VAEs compute in on such a device if nobody says otherwise."""
    return torch.float32 if device.type == "cpu" else torch.float16


# Where a device's runtime has no such call in this version, or is not there, or its driver cannot answer.
NOT_TOLD = (AttributeError, AssertionError, RuntimeError)

# What is tried where nobody knows how much is free: almost every device can keep so small a promise.
FIRST_PROMISE = 1 << 30

# The largest array that is safe: not quite 4 GiB, as PyTorch rounds up to 2 MiB. Arc allocates no more at once
# (intel/compute-runtime#627, intel/intel-extension-for-pytorch#325), MPS ends the process on more
# (pytorch/pytorch#143859), and of DirectML nothing better is known.
LARGEST_BLOCK = dict.fromkeys(("xpu", "mps", "privateuseone"), (4 << 30) - (2 << 20))


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated now: free for the driver, and what PyTorch's allocator holds but can give back.

    None where the device's runtime does not tell. DirectML's never does: it knows what it has allocated, as zeros on
    many adapters, but not of how much.
    """
    if device.type == "cpu":
        return _ram("MemAvailable:", "available")
    runtime: Any = getattr(torch, device.type, None)
    try:
        if device.type == "mps":
            return max(0, int(runtime.recommended_max_memory() - runtime.driver_allocated_memory()))
        free, _ = runtime.mem_get_info(device)
    except NOT_TOLD:
        return None
    return int(free) + _returnable(runtime, device)


def total_memory(device: torch.device) -> int | None:
    """Bytes that the device has, free or not; None where its runtime does not tell."""
    if device.type == "cpu":
        return _ram("MemTotal:", "total")
    runtime: Any = getattr(torch, device.type, None)
    try:
        return int(
            runtime.recommended_max_memory() if device.type == "mps" else runtime.mem_get_info(device)[1]
        )
    except NOT_TOLD:
        return None


def free_bytes(device: torch.device) -> int:
    """The same for who needs a number: a small one where it is not known."""
    free = free_memory(device)
    return FIRST_PROMISE if free is None else free


def _returnable(runtime: Any, device: torch.device) -> int:
    """Bytes that the allocator has reserved and can give back.

    Not those between arrays that are in use ("inactive split"), unless its segments can shrink: a plan's large arrays
    do not fit there.
    """
    try:
        stats = runtime.memory_stats(device)
    except NOT_TOLD:  # as with ZLUDA
        return 0
    reserved, active, between = (
        int(stats.get(f"{name}_bytes.all.current", 0)) for name in ("reserved", "active", "inactive_split")
    )
    return max(0, reserved - active - (0 if _segments_shrink() else between))


def _segments_shrink() -> bool:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    return any("expandable_segments:true" in os.environ.get(name, "").lower() for name in names)


def _ram(line_of_linux: str, name_of_psutil: str) -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith(line_of_linux):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import psutil
    except ImportError:
        return None
    return int(getattr(psutil.virtual_memory(), name_of_psutil))


def largest_block(device: torch.device) -> int | None:
    """Bytes that one array may have at most; None where only the memory itself limits it."""
    return LARGEST_BLOCK.get(device.type)


def keeps_freed_memory(device: torch.device) -> bool:
    """Whether PyTorch keeps what was freed there for itself, so that it may be in pieces."""
    return device.type != "cpu"


def release_cached(device: torch.device) -> None:
    """Give unused memory back to the driver, after a failed attempt; never raises, whatever state the device is in."""
    gc.collect()
    if device.type != "cpu":
        with contextlib.suppress(*NOT_TOLD):
            getattr(torch, device.type).empty_cache()


@functools.lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; other allocators have none, or give back by themselves."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


def give_back_ram(used_bytes: int) -> None:
    """After work in the main memory: have the C library return to the system what it keeps, if that was much.

    glibc keeps freed memory in an arena for each thread, and every page of the WebUI is another thread.
    """
    trim = _malloc_trim() if used_bytes >= WORTH_GIVING_BACK else None
    if trim is not None:
        trim(0)


def synchronize(device: torch.device) -> None:
    """Wait until everything that the device was told to do is done, where PyTorch can wait for it."""
    if device.type == "cpu":
        return
    wait = getattr(getattr(torch, device.type, None), "synchronize", None)
    if wait is not None:
        wait() if device.type == "mps" else wait(device)
