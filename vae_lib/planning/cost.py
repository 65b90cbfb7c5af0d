"""What a piece of work will cost: the engine's own passes, run on arrays that are only counted."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vae_lib.device import transfers
from vae_lib.engine import batch as engine
from vae_lib.engine.buffers import BORDER, Band, HostStore, Item, Memory
from vae_lib.engine.compute import Compute
from vae_lib.engine.passes import Tiling
from vae_lib.networks import Network
from vae_lib.planning import counted_functions as counted_functions  # fills the rules
from vae_lib.planning.counted import DEVICE, HOST, OUTSIDE, Counted, Meter, Shape4, Storage
from vae_lib.planning.work import Cost


def _sampled(
    todo: list[tuple[int, int]], rows: int, height: int, period: int, border: int
) -> Iterator[tuple[int, int]]:
    """(band, how many from it on are counted by it): of those alike, a few at both ends one by one.

    What is kept grows and what is freed shrinks steadily, but for steps that repeat after ``period`` bands, so the most
    is alive near one of the ends. Those between are counted by one for each step of the period: in as many stretches,
    each one more than a multiple of it long.
    """
    inner = range(-(-BORDER // rows), (height - border) // rows)
    between = inner[period - 1 : -period]
    stretch = (len(between) // period - 1) // period * period + 1
    index = 0
    while index < len(todo):
        alike = stretch > 1 and between and between[0] <= index < between[0] + period * stretch
        times = stretch if alike else 1
        yield index, times
        index += times


_done: dict[object, Any] = {}  # what the repeated work of a kind is counted as: it is the same in every plan


class CountedMemory(Memory):
    """The twin of `Memory`: arrays without values, and of bands that are alike one.

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

    def each(self, items: Sequence[Item], kind: Callable[[Item], object], done: dict[object, Any]) -> Iterator[Item]:
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

    def frames(self, count: int, period: int) -> Iterator[tuple[int, int]]:
        """The first ones see fewer before them; from the third period on, all periods are alike."""
        for number in range(min(count, 1 + 3 * period)):
            times = 1 if number <= 2 * period else (count - 1) // period - 2
            with self.repeated(times):
                yield number, times

    def repeated(self, times: int) -> _Repeated:
        return _Repeated(self.meter, times)

    def host_store(self) -> HostStore:
        return _CountedHostStore(self.meter)

    def bands(self, height: int, rows: int, period: int = 1, border: int = BORDER) -> Iterator[Band]:
        todo = [(first, min(first + rows, height)) for first in range(0, height, rows)]
        for index, repeats in _sampled(todo, rows, height, period, border):
            following = todo[index + repeats] if index + repeats < len(todo) else None
            before = self.meter.transferred
            with self.repeated(repeats):
                yield Band(*todo[index], repeats, following)
            if index == 0 or following is None:
                share = 1 if len(todo) == 1 else 2
                self.exposed += (self.meter.transferred - before) // share

    def cost(self, bands: int) -> Cost:
        """Of all that was counted."""
        meter = self.meter
        return Cost(
            peak_bytes=meter.needed,
            multiplications=meter.multiplications,
            moved_bytes=meter.moved,
            transferred_bytes=meter.transferred,
            exposed_bytes=self.exposed,
            host_bytes=meter.host_peak,
            largest_bytes=meter.largest,
            bands=bands,
            dispatches=meter.dispatches,
        )


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


@contextmanager
def _without_collections() -> Iterator[None]:
    """Arrays go when nothing holds them; looking for circles among so many would take longer than the counting."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def estimate(vae: Network, shape: Shape4, tiling: Tiling, compute: Compute, *, resident: bool, decodes: bool) -> Cost:
    """Cost of decoding latents, or encoding pictures, of ``shape`` (batch, channels, height, width).

    Args:
        vae: the network, which may be without weights.
        resident: whether its weights lie on the device in the dtype already; else a pass copies its own.
    """
    memory, bands = CountedMemory(compute.device, compute.dtype, resident), 0

    def count(done: int, total: int) -> None:
        nonlocal bands
        bands = total

    work = engine.decode if decodes else engine.encode_moments
    with _without_collections():
        work(vae, memory.given(*shape), tiling, replace(compute, progress=count), memory)
    return memory.cost(bands)


def estimate_plain(vae: Network, shape: Shape4, compute: Compute, *, decodes: bool) -> Cost:
    """The same of the plain network, its weights on the device, one picture after the other."""
    memory = CountedMemory(compute.device, compute.dtype, True)
    memory.meter.channels_last = False
    batch, channels, height, width = shape
    for _ in memory.each(range(batch), lambda index: None, {}):
        work: Any = vae.decode if decodes else vae.encode_moments
        work(memory.given(1, channels, height, width))
    return memory.cost(batch)
