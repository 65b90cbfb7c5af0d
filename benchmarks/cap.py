"""A process that has less memory than the machine: what a smaller graphics card would leave to the VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_lib.device.measure import LiveTensors


class Cap:
    """What runs within it can allocate ``limit`` bytes on the device, of which ``ballast`` are taken.

    On CUDA the allocator refuses more, from now on. Elsewhere, for a rehearsal without a GPU, an operation fails whose
    result exceeds it together with all that earlier ones, in this or an earlier ``with``, left alive.
    """

    def __init__(self, device: torch.device, limit: int, ballast: int) -> None:
        if device.type == "cuda" and device.index is None:  # the allocator's limit is asked for by number
            device = torch.device("cuda", torch.cuda.current_device())
        self._device, self._limit = device, limit
        self._ballast: Tensor | None = None
        self._counter: _Limited | None = None
        if device.type == "cuda":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
            self._ballast = torch.empty(ballast, dtype=torch.uint8, device=device)
        else:
            self._counter = _Limited(device, limit - ballast)

    def __enter__(self) -> None:
        if self._counter is not None:
            self._counter.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._counter is not None:
            self._counter.__exit__(*error)

    def lift(self) -> None:
        """Allow everything again, in the same process."""
        self._ballast = None
        if self._device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def free(self) -> int:
        """Bytes that can be allocated now."""
        if self._counter is not None:
            return self._counter.limit - self._counter.live
        return self._limit - torch.cuda.memory_allocated(self._device)


class _Limited(LiveTensors):
    def __init__(self, device: torch.device, limit: int) -> None:
        super().__init__(device)
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.live > self.limit:
            raise torch.cuda.OutOfMemoryError("out of memory: more than the cap")
        return result
