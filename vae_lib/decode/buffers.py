"""Where activations live: scratch buffers, and feature maps kept as row bands on the device or in host memory.

Every activation here belongs to one image and is laid out (rows, width, channels), so that a band of rows is one
contiguous block (PyTorch's ``channels_last``).
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae_lib.decode import transfers
from vae_lib.decode.transfers import Transfers
from vae_lib.errors import PlanError


def nbytes(*shape: int, dtype: torch.dtype) -> int:
    """Bytes of a tensor of this shape and dtype."""
    return math.prod(shape) * dtype.itemsize


class Workspace:
    """Named scratch buffers of one pass: each grows to the largest shape asked for and serves band after band."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of ``shape``; its content is whatever the last user of the name left there."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            self._buffers.pop((name, dtype), None)
            buffer = None  # the old one must be gone before the new one comes
            buffer = self._buffers[name, dtype] = torch.zeros(size, dtype=dtype, device=self.device)
        return buffer[:size].view(shape)


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
    """Bands rest outside the compute device: in pinned host memory, or for a CPU decode in a scratch file.

    The scratch file is memory-mapped and its space reserved beforehand, so that a full disk is an error here rather
    than a crash on a later write.
    """

    def __init__(self, device: torch.device, folder: str | None = None) -> None:
        self._device = device
        kind = transfers.kind_for(device)
        self.transfers = None if kind is None else kind(device)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        if device.type == "cpu":
            try:
                self._folder = tempfile.TemporaryDirectory(prefix="vae-guard-", dir=folder)
            except OSError as error:
                raise PlanError(
                    f"There is no folder for the scratch file of offloaded activations ({error.strerror}). "
                    "Set TMPDIR to a folder that can be written to."
                ) from error

    def _empty(self, like: Tensor) -> Tensor:
        if self._folder is None:
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._device.type == "cuda")
        self._files += 1
        path = os.path.join(self._folder.name, f"{self._files}.bin")
        try:
            with open(path, "wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, like.nbytes)
                else:
                    file.truncate(like.nbytes)
        except OSError as error:
            raise PlanError(
                f"The scratch file for offloaded activations could not be written to {self._folder.name} "
                f"({error.strerror}). Free some disk space there or set TMPDIR to another folder."
            ) from error
        band = torch.from_file(path, shared=True, size=like.numel(), dtype=like.dtype).view(like.shape)
        if os.name == "posix":
            os.unlink(path)  # the mapping keeps the data; the space is freed with the band
        return band

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
        if self._folder is not None:
            with contextlib.suppress(OSError):  # Windows: a band is still mapped; the system clears the rest
                self._folder.cleanup()


Store = DeviceStore | HostStore


class FeatureMap:
    """One image's activation, (height, width, channels), as a list of row bands that can be freed one by one.

    With ``whole`` the rows are copied into that tensor instead: the picture that comes out, the latents that go in.
    """

    def __init__(
        self, height: int, width: int, channels: int, store: Store, whole: Tensor | None = None
    ) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.transfers = store.transfers
        self._store = store
        self._whole = whole
        self._bands: list[tuple[int, Tensor]] = [] if whole is None else [(0, whole)]
        self._rows_written = 0

    @classmethod
    def of(cls, tensor: Tensor) -> FeatureMap:
        """A map over an existing (height, width, channels) tensor, to read from or to append into."""
        height, width, channels = tensor.shape
        return cls(height, width, channels, DeviceStore(), tensor)

    def append(self, band: Tensor) -> None:
        """Add the next rows, shape (rows, width, channels)."""
        first = self._rows_written
        self._rows_written += band.shape[0]
        if self._whole is None:
            self._bands.append((first, self._store.put(band)))
        else:
            self._whole[first : self._rows_written].copy_(band, non_blocking=True)

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(row, tensor) for each stored stretch of rows ``first`` to ``last - 1``, where it is stored."""
        for start, band in self._bands:
            low, high = max(first, start), min(last, start + band.shape[0])
            if low < high:
                yield low, band[low - start : high - start]

    def write(self, first: int, rows: Tensor) -> None:
        """Replace the stored rows from ``first`` on."""
        for row, piece in self.pieces(first, first + rows.shape[0]):
            self._store.write(piece, rows[row - first : row - first + piece.shape[0]])

    def release(self, before: int) -> None:
        """Free the bands that end at or above row ``before``."""
        self._bands = [(start, band) for start, band in self._bands if start + band.shape[0] > before]


class Arrivals:
    """A map's rows where they can be computed with: where they are stored, or brought to the device in a buffer.

    Rows that are ordered a band ahead arrive while the band before is computed: two buffers take turns. Others are
    brought when they are asked for, into a third, where they stay until the next such.
    """

    def __init__(self, source: FeatureMap, workspace: Workspace, dtype: torch.dtype, name: str) -> None:
        self.height, self.width, self.channels = source.height, source.width, source.channels
        self.brings = source.transfers is not None
        self._source, self._workspace, self._dtype, self._name = source, workspace, dtype, name
        self._ordered: list[tuple[int, Tensor, list[Any]]] = []  # first row, rows, copies not yet waited for
        self._turn = 0

    def order(self, first: int, last: int) -> None:
        """Start bringing rows ``first`` to ``last - 1``; what was ordered before the last order is given up."""
        if self.brings:
            self._turn = 1 - self._turn
            for _, _, copies in self._ordered[:-1]:  # before their buffer serves again
                self._wait(copies)
            ordered = (first, *self._bring(f"{self._name} {self._turn}", first, last))
            self._ordered = [*self._ordered[-1:], ordered]

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(row, tensor) for stretches of rows ``first`` to ``last - 1``."""
        if not self.brings:
            yield from self._source.pieces(first, last)
            return
        start, rows, copies = next(
            (o for o in reversed(self._ordered) if o[0] <= first and last <= o[0] + o[1].shape[0]), None
        ) or (first, *self._bring(f"{self._name} late", first, last))
        self._wait(copies)
        yield first, rows[first - start : last - start]

    @property
    def _transfers(self) -> Transfers:
        assert self._source.transfers is not None
        return self._source.transfers

    def _wait(self, copies: list[Any]) -> None:
        for copied in copies:
            self._transfers.wait(copied)
        copies.clear()

    def _bring(self, buffer: str, first: int, last: int) -> tuple[Tensor, list[Any]]:
        rows = self._workspace.take(buffer, (last - first, self.width, self.channels), self._dtype)
        copies = [
            self._transfers.bring(rows[row - first : row - first + piece.shape[0]], piece)
            for row, piece in self._source.pieces(first, last)
        ]
        return rows, copies


class RowReader:
    """Reads windows of rows from top to bottom while the rows already passed are overwritten or freed.

    If they ``change`` it keeps copies of the ``halo`` rows above the current position and, for wrapped (seamless)
    images, of the top rows. Rows are numbered as in the picture; with ``wrap`` row -1 is the last row and row
    ``height`` the first.
    """

    def __init__(
        self, source: FeatureMap | Arrivals, halo: int, wrap: bool, changes: bool, device: torch.device
    ) -> None:
        self._source, self._halo, self._wrap, self._device = source, halo, wrap, device
        self._changes = changes
        self._done = 0
        self._tail: Tensor | None = None
        self._head = self._copy(0, min(halo, source.height)) if wrap and changes and halo else None

    def _copy(self, first: int, last: int) -> Tensor:
        source = self._source
        pieces = list(self.window(first, last))
        copy = torch.empty(
            last - first, source.width, source.channels, dtype=pieces[0][1].dtype, device=self._device
        )
        for row, piece in pieces:
            copy[row - first : row - first + piece.shape[0]].copy_(piece)
        return copy

    def window(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(row, tensor) stretches of rows ``first`` to ``last - 1``; rows outside an unwrapped image are left out."""
        height, row = self._source.height, first
        while row < last:
            if not self._wrap and row < 0:
                row = 0
                continue
            if not self._wrap and row >= height:
                return
            inside = row % height
            if self._wrap and row >= height and self._head is not None:
                stretch = self._head[inside : inside + last - row]
                yield row, stretch
                row += stretch.shape[0]
            elif self._tail is not None and inside < self._done:
                offset = self._tail.shape[0] - (self._done - inside)
                stretch = self._tail[offset : offset + last - row]
                yield row, stretch
                row += stretch.shape[0]
            else:
                end = min(inside + last - row, height)
                for start, piece in self._source.pieces(inside, end):
                    yield row + start - inside, piece
                row += end - inside

    def advance(self, row: int) -> None:
        """Everything above ``row`` may change from now on; the halo above it is kept."""
        if self._changes and self._halo:
            self._tail = self._copy(max(row - self._halo, 0), row)
        self._done = row
