"""How much memory a piece of work takes at its peak."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vae_lib.device import kinds


class PeakMemory:
    """Context manager: ``bytes`` is then the most that was allocated at once, beyond what was there before.

    Where we know PyTorch's allocator (`Kind.allocator`) it is that one's peak, elsewhere the bytes of the tensors that
    PyTorch operations created and that were alive together. Tensors over files (a CPU decode's offloaded activations)
    are not counted.

    That counting slows the work by a third. Without ``counts`` it is left out, and ``known`` is None then.
    """

    def __init__(self, device: torch.device, counts: bool = True) -> None:
        self.device = device
        self.bytes = 0
        self._counts = counts
        self._kind = kinds.of(device)
        self._tracker: LiveTensors | None = None
        self._before = 0

    def __enter__(self) -> PeakMemory:
        if self._kind.allocator is not None:
            self._kind.synchronize(self.device)
            self._kind.runtime.reset_peak_memory_stats(self.device)
            self._before = self._kind.runtime.memory_allocated(self.device)
        elif self._counts:
            self._tracker = LiveTensors(self.device)
            self._tracker.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        if self._kind.allocator is not None:
            self._kind.synchronize(self.device)
            self.bytes = self._kind.runtime.max_memory_allocated(self.device) - self._before
        elif self._tracker is not None:
            self._tracker.__exit__(*error)  # type: ignore[no-untyped-call]
            self.bytes = self._tracker.peak
            self._tracker = None

    @property
    def known(self) -> int | None:
        """``bytes``, if they were measured."""
        return self.bytes if self._counts or self._kind.allocator is not None else None


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations under it create, until each is freed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._kind = kinds.of(device)
        self._known: dict[int, list[int]] = {}  # storage -> tensors over it, bytes
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_flatten((args, kwargs))[0]:
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, count=False)
        result = func(*args, **(kwargs or {}))
        count = func is not torch.ops.aten.from_file.default
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, count)
        return result

    def _see(self, tensor: torch.Tensor, count: bool) -> None:
        """A storage lives as long as a tensor over it does. (PyTorch 2.1 cannot hold weak references to storages.)"""
        if kinds.of(tensor.device) is not self._kind or id(tensor) in self._seen:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known[key] = [0, storage.nbytes() if count else 0]
            self.live += self._known[key][1]
            self.peak = max(self.peak, self.live)
        self._known[key][0] += 1
        self._seen.add(id(tensor))
        weakref.finalize(tensor, self._freed, id(tensor), key)

    def _freed(self, tensor: int, key: int) -> None:
        self._seen.discard(tensor)
        entry = self._known[key]
        entry[0] -= 1
        if entry[0] == 0:
            del self._known[key]
            self.live -= entry[1]
