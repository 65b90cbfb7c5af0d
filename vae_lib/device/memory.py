"""What a compute device has free, and what it can allocate at once."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable

import torch

from vae_lib.device import kinds
from vae_lib.errors import InputError

WORTH_GIVING_BACK = 16 << 20  # bytes

# What is assumed where nobody knows how much is free: almost every device can keep so small a promise.
FIRST_PROMISE = 1 << 30


def choose_device(name: str | None = None) -> torch.device:
    """The named device, or the best one there is.

    Raises:
        InputError: when the device is not there.
    """
    if name is None:
        return torch.device(kinds.there()[0].name)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        usable = " or ".join(kind.name for kind in reversed(kinds.there()))
        raise InputError(f"There is no device called {name!r}; use {usable}.") from error
    count = kinds.of(device).count()
    if not count:
        raise InputError(f"This machine has no usable {device.type} device; use --device cpu.")
    if (device.index or 0) >= count:
        raise InputError(f"There is no {device}; this machine has {count} {device.type.upper()} device(s).")
    return device


def usual_dtype(device: torch.device) -> torch.dtype:
    """What VAEs compute in on such a device if nobody says otherwise."""
    return kinds.of(device).usual_dtype


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated now; None where the device's runtime does not tell."""
    return kinds.of(device).free(device)


def total_memory(device: torch.device) -> int | None:
    """Bytes that the device has, free or not; None where its runtime does not tell."""
    return kinds.of(device).total(device)


def free_bytes(device: torch.device) -> int:
    """What is free for who needs a number: a small one where it is not known."""
    free = free_memory(device)
    return FIRST_PROMISE if free is None else free


def largest_block(device: torch.device) -> int | None:
    """Bytes that one array may have at most; None where only the memory itself limits it."""
    return kinds.of(device).largest_block


def keeps_freed_memory(device: torch.device) -> bool:
    """Whether PyTorch keeps what was freed there for itself, so that it may be in pieces."""
    return kinds.of(device).keeps_freed_memory


def release_cached(device: torch.device) -> None:
    """Give unused memory back to the driver, after a failed attempt; never raises, whatever state the device is in."""
    gc.collect()
    kinds.of(device).release_cached()


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
    """Wait until everything that the device was given to do is done, where PyTorch can wait for it."""
    kinds.of(device).synchronize(device)
