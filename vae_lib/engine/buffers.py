"""Where activations live: fresh arrays, scratch buffers, and stores on the device or in host memory.

Every activation here belongs to one image and is a picture (1, channels, rows, width) in PyTorch's ``channels_last``
layout, so that a band of rows is one contiguous block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vae_lib.device import kinds, transfers
from vae_lib.device.transfers import Transfers
from vae_lib.engine.scratch import Scratch

Item = TypeVar("Item")
Pieces = list[tuple[int, Tensor]]  # first row, rows
# Rows from the edge of a picture within which a band may read other rows than one further in.
BORDER = 4


class Band(NamedTuple):
    """Rows ``first`` to ``last - 1``, for how many bands like it they stand, and the next band's rows."""

    first: int
    last: int
    repeats: int
    following: tuple[int, int] | None


class Memory:
    """Fresh arrays on a device, and the order in which bands are done.

    The planner's twin, which counts, is `CountedMemory` in `vae_lib.planning.cost`.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._averages: dict[int, Tensor] = {}
        self.done: dict[object, Any] = {}  # see `each`

    def empty(self, channels: int, rows: int, width: int) -> Tensor:
        """(1, channels, rows, width), channels last."""
        shape = (1, channels, rows, width)
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)

    def picture(self, batch: Tensor, index: int) -> Tensor:
        """One of (B, channels, height, width) as a copy (1, channels, height, width), channels last."""
        _, channels, height, width = batch.shape
        return self.empty(channels, height, width).copy_(batch.narrow(0, index, 1))

    def pictures(self, batch: int, channels: int, height: int, width: int, device: torch.device) -> Tensor:
        """(batch, channels, height, width), channels last, on any device."""
        shape = (batch, channels, height, width)
        return torch.empty(shape, dtype=self.dtype, device=device, memory_format=torch.channels_last)

    def zeros(self, size: int, dtype: torch.dtype) -> Tensor:
        """A flat array."""
        return torch.zeros(size, dtype=dtype, device=self.device)

    def flat(self, size: int) -> Tensor:
        """A flat array, not filled."""
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def full(self, size: int, value: float) -> Tensor:
        """A flat float32 array."""
        return torch.full((size,), value, device=self.device)

    def parameter(self, parameter: Tensor) -> Tensor:
        """A weight where and in which dtype the pass computes; the module's own where it is so already."""
        return parameter.to(self.device, self.dtype)

    def factors(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """A norm's weight and bias, (channels,) each, in float32 or this dtype; ones and zeros if it has none."""
        if norm.weight is None:
            return self.full(norm.num_channels, 1.0), self.full(norm.num_channels, 0.0)
        dtype = self.dtype if norm.weight.dtype == self.dtype else torch.float32
        return norm.weight.to(self.device, dtype), norm.bias.to(self.device, dtype)

    def averages(self, channels: int, groups: int) -> Tensor:
        """(channels, channels) float32: times a value per channel it gives each channel the mean of its group."""
        if channels not in self._averages:
            size = channels // groups
            blocks = self._identity(groups).div_(size).view(groups, 1, groups, 1)
            self._averages[channels] = blocks.expand(groups, size, groups, size).reshape(channels, channels)
        return self._averages[channels]

    def _identity(self, size: int) -> Tensor:
        return torch.eye(size, device=self.device)

    def numbers(self, values: list[int], count: int, dtype: torch.dtype) -> Tensor:
        """(count, 1) of as many values; of fewer in the twin."""
        return torch.tensor(values, dtype=dtype).view(count, 1).to(self.device)

    def stack(self, arrays: list[Tensor], count: int) -> Tensor:
        """(count, ...) of as many arrays; of fewer in the twin."""
        return torch.stack(arrays)

    def bands(self, height: int, rows: int, period: int = 1, border: int = BORDER) -> Iterator[Band]:
        """The bands of ``rows`` rows. The twin lets one stand for those like it, which ``period`` helps it to find, and
        ``border``: rows from the lower edge within which they are not alike.
        """
        for first in range(0, height, rows):
            last = min(first + rows, height)
            yield Band(first, last, 1, None if last == height else (last, min(last + rows, height)))

    def stretches(self, rows: int, step: int) -> Iterator[Band]:
        """The same of a band that is looked at ``step`` rows at a time, each of them once more."""
        return self.bands(rows, step)

    def each(self, items: Sequence[Item], kind: Callable[[Item], object], done: dict[object, Any]) -> Iterator[Item]:
        """All items. The twin gives one of each kind, and none of a kind that it has noted in ``done``."""
        return iter(items)

    def frames(self, count: int, period: int) -> Iterator[tuple[int, int]]:
        """(frame, for how many it stands) of a video's. The twin lets ``period`` frames stand for those like them."""
        return ((number, 1) for number in range(count))

    def repeated(self, times: int) -> AbstractContextManager[object]:
        """What is done within stands for so much of its kind, in the twin."""
        return nullcontext()

    def host_store(self) -> HostStore:
        return HostStore(self.device)


def rows_of(band: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last - 1`` of a band, a view."""
    return band if last - first == band.shape[2] else band.narrow(2, first, last - first)


def rows_of_both(band: Tensor, first: int, pieces: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of the rows that a band from row ``first`` on has in common with each of the pieces (row, rows)."""
    for row, piece in pieces:
        low, high = max(row, first), min(row + piece.shape[2], first + band.shape[2])
        if low < high:
            yield rows_of(band, low - first, high - first), rows_of(piece, low - row, high - row)


def joined(pieces: Pieces, first: int, last: int, memory: Memory) -> Tensor:
    """Rows ``first`` to ``last - 1`` of pieces (row, rows), in an array of their own."""
    _, channels, _, width = pieces[0][1].shape
    out = memory.empty(channels, last - first, width)
    for target, rows in rows_of_both(out, first, pieces):
        target.copy_(rows)
    return out


class Workspace:
    """Named scratch buffers of one pass: each grows to the largest shape asked for and serves band after band."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._bands: dict[str, Tensor] = {}  # the last view taken of a name

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous array of ``shape``: zeros at first, then whatever the last user of the name left there."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            self._buffers.pop((name, dtype), None)
            self._bands.pop(name, None)
            buffer = None  # the old one must be gone before the new one comes
            buffer = self._buffers[name, dtype] = self.memory.zeros(size, dtype)
        whole = buffer if buffer.numel() == size else buffer.narrow(0, 0, size)
        return whole.view(*shape)

    def band(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The same as a band of ``shape`` (channels, rows, width): (1, channels, rows, width), channels last."""
        channels, rows, width = shape
        band = self._bands.get(name)
        if band is None or band.shape != (1, channels, rows, width) or band.dtype != dtype:
            band = self.take(name, (1, rows, width, channels), dtype).permute(0, 3, 1, 2)
            self._bands[name] = band
        return band


class DeviceStore:
    """Bands stay where they were computed."""

    transfers: Transfers | None = None

    def put(self, band: Tensor) -> Tensor:
        return band

    def write(self, target: Tensor, rows: Tensor) -> None:
        target.copy_(rows)

    def retire(self) -> None:
        pass

    def close(self) -> None:
        pass


class HostStore:
    """Bands rest outside the compute device: in pinned host memory, or for a CPU decode in scratch files."""

    def __init__(self, device: torch.device, folder: str | None = None) -> None:
        self._device = device
        kind = transfers.kind_for(device)
        self.transfers = None if kind is None else kind(device)
        self._scratch = Scratch(folder) if kinds.of(device).in_main_memory else None

    def _empty(self, like: Tensor) -> Tensor:
        if self._scratch is not None:
            return self._scratch.band(like)
        batch, channels, rows, width = like.shape
        pinned = kinds.of(self._device).streams
        flat = torch.empty(batch, rows, width, channels, dtype=like.dtype, pin_memory=pinned)
        return flat.permute(0, 3, 1, 2)

    def put(self, band: Tensor) -> Tensor:
        host = self._empty(band)
        self.write(host, band)
        return host

    def write(self, target: Tensor, rows: Tensor) -> None:
        """Copy rows of the device, which must not change until `retire`, over stored ones."""
        if self.transfers is None:
            target.copy_(rows)
        else:
            self.transfers.send(target, rows)

    def retire(self) -> None:
        """Let the rows of the device that were put or written go."""
        if self.transfers is not None:
            self.transfers.retire()

    def close(self) -> None:
        if self.transfers is not None:
            self.transfers.close()
        if self._scratch is not None:
            self._scratch.close()


Store = DeviceStore | HostStore
