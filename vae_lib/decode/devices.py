"""What a compute device has free."""

from __future__ import annotations

import gc
import os

import torch

from vae_lib.decode.failures import is_out_of_memory as is_out_of_memory
from vae_lib.errors import InputError


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


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated now: free for the driver, plus what PyTorch's allocator holds unused."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        limit = getattr(torch.mps, "recommended_max_memory", None)
        total = limit() if limit is not None else _available_ram()
        return max(0, int(total - torch.mps.driver_allocated_memory()))
    return _available_ram()


def _available_ram() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import psutil
    except ImportError:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    return int(psutil.virtual_memory().available)


def release_cached(device: torch.device) -> None:
    """Give unused memory back to the driver, after a failed attempt."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
