"""The twin of `Memory` that gives counted arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vae_lib.device import transfers
from vae_lib.engine.buffers import Band, HostStore, Item, Memory
from vae_lib.planning.counted import DEVICE, HOST, OUTSIDE, Counted, Meter, Storage

_done: dict[object, Any] = {}  # what the repeated work of a kind is counted as: it is the same in every plan


class CountedArrays(Memory):
    """All of `Memory` but the order of bands, which is `vae_lib.planning.cost`'s.

    Args:
        resident: whether the weights lie on the device in ``dtype`` already; else a pass copies its own.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, resident: bool) -> None:
        super().__init__(device, dtype)
        self.meter = Meter(device)
        self.exposed = 0
        self.done = _done
        self._resident = resident

    def _new(self, *shape: int, dtype: torch.dtype | None = None, place: str = DEVICE) -> Any:
        self.meter.did()
        return Counted.new(self.meter, shape, dtype or self.dtype, place)

    def given(self, *shape: int) -> Any:
        """What is there already, on the device."""
        return Counted(shape, self.dtype, Storage(self.meter, 0, DEVICE))

    def empty(self, channels: int, rows: int, width: int) -> Any:
        return self._new(1, channels, rows, width)

    def pictures(self, batch: int, channels: int, height: int, width: int, device: torch.device) -> Any:
        place = DEVICE if device == self.device else OUTSIDE
        return self._new(batch, channels, height, width, place=place)

    def zeros(self, size: int, dtype: torch.dtype) -> Any:
        return self._new(size, dtype=dtype)

    def flat(self, size: int) -> Any:
        return self._new(size)

    def full(self, size: int, value: float) -> Any:
        return self._new(size, dtype=torch.float32)

    def parameter(self, parameter: Any) -> Any:
        shape = tuple(parameter.shape)
        return self.given(*shape) if self._resident else self._new(*shape)

    def factors(self, norm: nn.GroupNorm) -> Any:
        channels = norm.num_channels
        if self._resident and norm.weight is not None:
            return self.given(channels), self.given(channels)
        return tuple(self._new(channels, dtype=torch.float32) for _ in range(2))

    def _identity(self, size: int) -> Any:
        return self._new(size, size, dtype=torch.float32)

    def numbers(self, values: list[int], count: int, dtype: torch.dtype) -> Any:
        return self._new(count, 1, dtype=dtype)

    def stack(self, arrays: list[Any], count: int) -> Any:
        return self._new(count, *arrays[0].shape, dtype=arrays[0].dtype)

    def stretches(self, rows: int, step: int) -> Iterator[Band]:
        whole = rows // step
        for first, last, times in ((0, step, whole), (whole * step, rows, 1)):
            if last > first and times:
                with self.repeated(times):
                    yield Band(first, last, times, None)

    def each(
        self, items: Sequence[Item], kind: Callable[[Item], object], done: dict[object, Any]
    ) -> Iterator[Item]:
        kinds: dict[object, list[Item]] = {}
        for item in items:
            kinds.setdefault(kind(item), []).append(item)
        meter = self.meter
        for name, alike in kinds.items():
            times = meter.repeats * len(alike)
            if name not in done:
                before, repeats = meter.counts(), meter.repeats
                meter.repeats = 1
                yield alike[0]
                meter.repeats = repeats
                done[name] = [now - then for now, then in zip(meter.counts(), before, strict=True)]
                times -= 1
            meter.add(done[name], times)

    def repeated(self, times: int) -> _Repeated:
        return _Repeated(self.meter, times)

    def host_store(self) -> HostStore:
        return _CountedHostStore(self.meter)


class _Repeated:
    """What is counted within counts so many times."""

    def __init__(self, meter: Meter, times: int) -> None:
        self._meter, self._times = meter, times

    def __enter__(self) -> None:
        self._meter.repeats *= self._times

    def __exit__(self, *_: object) -> None:
        self._meter.repeats //= self._times


class _CountedHostStore(HostStore):
    def __init__(self, meter: Meter) -> None:
        self._meter, self._scratch = meter, None
        kind = transfers.kind_for(meter.device)
        self.transfers = None if kind is None else transfers.Transfers(meter.device)

    def _empty(self, like: Any) -> Any:
        return Counted.new(self._meter, like.shape, like.dtype, HOST)
