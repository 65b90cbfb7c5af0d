"""Feature maps, kept as row bands on the device or in host memory, and their rows where they can be computed with."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae_lib.device.transfers import Transfers
from vae_lib.engine.buffers import DeviceStore, HostStore, Memory, Store, Workspace, rows_of
from vae_lib.networks import out_of_patches


class FeatureMap:
    """One image's activation, (1, channels, height, width), as a list of row bands that can be freed one by one.

    With ``whole`` the rows are copied into that array instead: the picture that comes out, the latents that go in. A
    picture is made of squares of ``patch`` pixels a side, whose numbers are a pixel's channels here.

    Attributes:
        offset: (channels,), still to be added to what is stored: the biases of the convolutions that made it, where
            the device would add them in a pass of its own (`Kernels.bias_apart`). None for zeros.
        frames: of a video, for which this one stands (in the planner's twin).
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        store: Store,
        whole: Tensor | None = None,
        patch: int = 1,
        frames: int = 1,
    ) -> None:
        self.height, self.width, self.channels, self.frames = height, width, channels, frames
        self.transfers = store.transfers
        self.offset: Tensor | None = None
        self._store = store
        self._whole, self._patch = whole, patch
        # row bands: first row, array, how many like it it stands for (in the planner's twin)
        self._starts: list[int] = [] if whole is None else [0]
        self._bands: list[Any] = [] if whole is None else [whole]
        self._counts: list[int] = [] if whole is None else [1]
        self._alike: dict[int, Any] = {}  # by number of the band: those of the further frames
        if self._bands and frames > 1:
            self._alike[0] = self._bands[0].pile(frames - 1)
        self._rows_written = self._freed = 0

    @classmethod
    def of(cls, tensor: Tensor, patch: int = 1, frames: int = 1) -> FeatureMap:
        """A map over an existing (1, channels, height, width) array, to read from or to append into.

        In squares of ``patch`` pixels (1, channels * patch ** 2, height / patch, width / patch), only the latter.
        """
        _, channels, height, width = tensor.shape
        return cls(height // patch, width // patch, channels * patch**2, DeviceStore(), tensor, patch, frames)

    @property
    def band_rows(self) -> int:
        """Rows of each stored band but the last."""
        return self._starts[1] if len(self._starts) > 1 else self.height

    @property
    def picture(self) -> Tensor | None:
        """The activation as one array, if it lies on the device as such."""
        if isinstance(self._store, HostStore) or len(self._bands) != 1:
            return None
        return self._bands[0]

    def append(self, band: Tensor, repeats: int = 1) -> None:
        """Add the next rows, (1, channels, rows, width); ``repeats``: for how many bands like it this one stands."""
        if self._whole is not None:
            band = out_of_patches(band, self._patch)
        first, rows = self._rows_written, band.shape[2]
        self._rows_written += repeats * rows
        if self._whole is not None:
            rows_of(self._whole, first, first + rows).copy_(band, non_blocking=True)
            return
        kept: Any = self._store.put(band)
        self._keep(first, kept, 1)
        if repeats > 1:
            self._keep(first + rows, kept.pile(repeats - 1), repeats - 1)

    def _keep(self, first: int, band: Any, count: int) -> None:
        if self.frames > 1:
            self._alike[len(self._bands)] = band.pile(count * (self.frames - 1))
        self._starts.append(first)
        self._bands.append(band)
        self._counts.append(count)

    def pieces(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(row, array) for each stored stretch of rows ``first`` to ``last - 1``, where it is stored."""
        index = max(0, bisect_right(self._starts, first) - 1)
        while index < len(self._bands) and self._starts[index] < last:
            band, start, count = self._bands[index], self._starts[index], self._counts[index]
            index += 1
            if band is None:
                continue
            rows = band.shape[2]
            skipped = max(0, (first - start) // rows) if count > 1 else 0
            for number in range(skipped, count):
                top = start + number * rows
                low, high = max(first, top), min(last, top + rows)
                if low < high:
                    yield low, rows_of(band, low - top, high - top)
                elif top >= last:
                    break

    def write(self, first: int, rows: Tensor) -> None:
        """Replace the stored rows from ``first`` on: a band on the device gives way, to others the rows are copied."""
        count = rows.shape[2]
        index = bisect_right(self._starts, first) - 1
        band = self._bands[index] if index >= 0 else None
        if band is not None and self._whole is None and isinstance(self._store, DeviceStore):
            fits = band.shape[2] == count and (first - self._starts[index]) % count == 0
            if fits and first < self._starts[index] + self._counts[index] * count:
                if self._counts[index] == 1:
                    self._bands[index] = rows
                return  # of several the memory stays what it is
        for row, piece in self.pieces(first, first + count):
            self._store.write(piece, rows_of(rows, row - first, row - first + piece.shape[2]))

    def release(self, before: int) -> None:
        """Free the bands that end at or above row ``before``."""
        while self._freed < len(self._bands):
            band, start = self._bands[self._freed], self._starts[self._freed]
            if band is not None:
                count, rows = self._counts[self._freed], band.shape[2]
                if start + count * rows > before:
                    if count > 1 and before > start:
                        left = count - (before - start) // rows
                        band.storage.shrink(left)
                        if self._freed in self._alike:
                            self._alike[self._freed].storage.shrink(left * (self.frames - 1))
                    return
            self._bands[self._freed] = None
            self._alike.pop(self._freed, None)
            self._freed += 1

    def surrender(self) -> bool:
        """Let go of `picture`, which its holder then may change; False where others still count on it."""
        if self._whole is not None:
            return False
        self._bands[0] = None
        return True


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
        """(row, array) for stretches of rows ``first`` to ``last - 1``."""
        if not self.brings:
            yield from self._source.pieces(first, last)
            return
        start, rows, copies = next(
            (o for o in reversed(self._ordered) if o[0] <= first and last <= o[0] + o[1].shape[2]), None
        ) or (first, *self._bring(f"{self._name} late", first, last))
        self._wait(copies)
        yield first, rows_of(rows, first - start, last - start)

    @property
    def _transfers(self) -> Transfers:
        assert self._source.transfers is not None
        return self._source.transfers

    def _wait(self, copies: list[Any]) -> None:
        for copied in copies:
            self._transfers.wait(copied)
        copies.clear()

    def _bring(self, buffer: str, first: int, last: int) -> tuple[Tensor, list[Any]]:
        rows = self._workspace.band(buffer, (self.channels, last - first, self.width), self._dtype)
        copies = [
            self._transfers.bring(rows_of(rows, row - first, row - first + piece.shape[2]), piece)
            for row, piece in self._source.pieces(first, last)
        ]
        return rows, copies


class RowReader:
    """Reads windows of rows from top to bottom while the rows already passed are overwritten or freed.

    If they ``change`` it keeps copies of the ``halo`` rows above the current position and, for wrapped (seamless)
    images, of the top rows. Rows are numbered as in the picture; with ``wrap`` row -1 is the last row and row
    ``height`` the first.
    """

    def __init__(self, source: FeatureMap | Arrivals, halo: int, wrap: bool, changes: bool, memory: Memory) -> None:
        self._source, self._halo, self._wrap, self._memory = source, halo, wrap, memory
        self._changes = changes
        self._done = 0
        self._tail: Tensor | None = None
        self._head = self._copy(0, min(halo, source.height)) if wrap and changes and halo else None

    def _copy(self, first: int, last: int) -> Tensor:
        source = self._source
        copy = self._memory.empty(source.channels, last - first, source.width)
        for row, piece in self.window(first, last):
            rows_of(copy, row - first, row - first + piece.shape[2]).copy_(piece)
        return copy

    def window(self, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """(row, array) stretches of rows ``first`` to ``last - 1``.

        Rows outside an unwrapped image are left out, of a wrapped one those further out than the halo.
        """
        height, row = self._source.height, first
        last = min(last, height + self._halo)
        while row < last:
            if not self._wrap and row < 0:
                row = 0
                continue
            if not self._wrap and row >= height:
                return
            inside = row % height
            if self._wrap and row >= height and self._head is not None:
                end = min(inside + last - row, self._head.shape[2])
                yield row, rows_of(self._head, inside, end)
                row += end - inside
            elif self._tail is not None and inside < self._done:
                offset = self._tail.shape[2] - (self._done - inside)
                end = min(offset + last - row, self._tail.shape[2])
                yield row, rows_of(self._tail, offset, end)
                row += end - offset
            else:
                end = min(inside + last - row, height)
                for start, piece in self._source.pieces(inside, end):
                    yield row + start - inside, piece
                row += end - inside

    def advance(self, row: int, passed: int | None = None) -> None:
        """Everything above ``row`` may change from now on; the halo above it is kept.

        ``passed``: where the reader stands afterwards, if this band stands for several.
        """
        if self._changes and self._halo:
            self._tail = self._copy(max(row - self._halo, 0), row)
        self._done = row if passed is None else passed
