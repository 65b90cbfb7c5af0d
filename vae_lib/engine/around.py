"""The shortcut around a level of a stream: what came into the level waits for the rows that come out of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.engine.buffers import Memory, Pieces, joined, rows_of, rows_of_both
from vae_lib.networks import Averaged, Repeated


class Around:
    """Of one level in one picture. Rows that are to be averaged are so at once, in pairs, and wait in that size."""

    def __init__(self, shortcut: nn.Module, memory: Memory) -> None:
        """``shortcut``: ``Averaged``, ``Repeated`` or, where the input itself is added, ``nn.Identity``."""
        self._shortcut, self._memory = shortcut, memory
        self._waiting: list[Tensor] = []  # rows that follow one another; the last is the one above row ``_end``
        self._end = 0
        self._odd: Tensor | None = None  # the last row, if the one that it is averaged with has not come

    def took(self, first: int, rows: Tensor) -> None:
        """New rows of the level's input, from row ``first`` on."""
        if not isinstance(self._shortcut, Averaged):
            self._wait(rows, first + rows.shape[2])
            return
        if self._odd is not None:
            first, pieces = first - 1, [(first - 1, self._odd), (first, rows)]
            rows = joined(pieces, first, first + 1 + rows.shape[2], self._memory)
        count = rows.shape[2]
        pairs = count // 2
        self._odd = joined([(0, rows)], 2 * pairs, count, self._memory) if count % 2 else None
        if pairs:
            self._wait(F.avg_pool2d(rows_of(rows, 0, 2 * pairs), 2), first // 2 + pairs)

    def _wait(self, rows: Tensor, end: int) -> None:
        self._waiting.append(rows)
        self._end = end

    @property
    def _pieces(self) -> Pieces:
        """Counted from the end: a band that the planner lets stand for many has brought the rows of one."""
        pieces, row = [], self._end
        for rows in reversed(self._waiting):
            row -= rows.shape[2]
            pieces.append((row, rows))
        return pieces

    def add_to(self, made: Tensor, first: int) -> None:
        """To the level's result, from row ``first`` on."""
        match self._shortcut:
            case Repeated(corners=corners):
                for target, rows in self._doubled(made, first):
                    for row, column, channels in corners:
                        target[:, :, row::2, column::2].add_(rows[:, channels])
            case Averaged(channels=channels):
                for target, rows in rows_of_both(made, first, self._pieces):
                    target[:, channels].add_(rows)
            case _:
                for target, rows in rows_of_both(made, first, self._pieces):
                    target.add_(rows)

    def _doubled(self, made: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the result, two for each of those that wait."""
        for row, rows in self._pieces:
            low, high = max(row, first // 2), min(row + rows.shape[2], (first + made.shape[2]) // 2)
            if low < high:
                yield rows_of(made, 2 * low - first, 2 * high - first), rows_of(rows, low - row, high - row)

    def release(self, row: int) -> None:
        """What the rows of the result above ``row`` needed; the rest moves into an array of its own."""
        if isinstance(self._shortcut, Repeated):
            row //= 2
        self._waiting = [joined(self._pieces, row, self._end, self._memory)] if row < self._end else []
