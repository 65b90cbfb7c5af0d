"""The shortcut around a level of a stream: what came into the level waits for the rows that come out of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.engine.buffers import Memory, Pieces, joined, rows_of, rows_of_both
from vae_lib.networks import Averaged, Repeated


class _Waiting:
    """Rows of one frame that follow one another."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.end = 0  # the row after the last of them
        self.odd: Tensor | None = None  # the last row, if the one that it is averaged with has not come
        self.alike: list[Any] = []  # in the planner's twin: those of the frames that one stands for

    def add(self, rows: Tensor, end: int) -> None:
        self.rows.append(rows)
        self.end = end

    @property
    def pieces(self) -> Pieces:
        """Counted from the end: a band that the planner lets stand for many has brought the rows of one."""
        pieces, row = [], self.end
        for rows in reversed(self.rows):
            row -= rows.shape[2]
            pieces.append((row, rows))
        return pieces

    def release(self, row: int, memory: Memory, frames: int) -> None:
        """Those above ``row``; the rest moves into an array of its own. ``frames``: for which this one stands."""
        self.alike.clear()
        self.rows = [joined(self.pieces, row, self.end, memory)] if row < self.end else []
        if frames > 1:
            waiting: list[Any] = [*self.rows, *([] if self.odd is None else [self.odd])]
            self.alike += [rows.pile(frames - 1) for rows in waiting]


class Around:
    """Of one level in one picture or video. Rows that are to be averaged are so at once, in pairs, and wait like that.

    The level may make two frames of each but the first, or one of two of them; a picture is the first frame.
    """

    def __init__(self, shortcut: nn.Module, memory: Memory) -> None:
        """``shortcut``: ``Averaged``, ``Repeated`` or, where the input itself is added, ``nn.Identity``."""
        self._shortcut, self._memory = shortcut, memory
        self._frames: dict[int, _Waiting] = defaultdict(_Waiting)

    def took(self, frame: int, first: int, rows: Tensor) -> None:
        """New rows of a frame of the level's input, from row ``first`` on."""
        waiting = self._frames[frame]
        if not isinstance(self._shortcut, Averaged):
            waiting.add(rows, first + rows.shape[2])
            return
        if waiting.odd is not None:
            first, pieces = first - 1, [(first - 1, waiting.odd), (first, rows)]
            rows = joined(pieces, first, first + 1 + rows.shape[2], self._memory)
        count = rows.shape[2]
        pairs = count // 2
        waiting.odd = joined([(0, rows)], 2 * pairs, count, self._memory) if count % 2 else None
        if pairs:
            waiting.add(F.avg_pool2d(rows_of(rows, 0, 2 * pairs), 2), first // 2 + pairs)

    def add_to(self, frame: int, made: Tensor, first: int, last: int, frames: int) -> None:
        """To rows ``first`` to ``last - 1`` of a frame of the level's result; what only they needed goes.

        ``frames``: for which this one stands (in the planner's twin).
        """
        for given, part in self._of(frame):
            waiting = self._frames[given]
            self._add(waiting.pieces, part, made, first)
            if not isinstance(self._shortcut, Repeated):
                waiting.release(last, self._memory, frames)
            elif part == self._parts - 1:  # else the next frame of the result needs it too
                waiting.release(last // 2, self._memory, frames)

    @property
    def _parts(self) -> int:
        """Frames that one is made to, or of which one is made."""
        return self._shortcut.frames if isinstance(self._shortcut, Averaged | Repeated) else 1

    def _of(self, frame: int) -> list[tuple[int, int]]:
        """(frame of the input, which of the parts it is) that a frame of the result is made of."""
        last = self._parts - 1
        if not last or not frame:
            return [(frame, last)]
        if isinstance(self._shortcut, Averaged):
            return [(2 * frame - 1, 0), (2 * frame, 1)]
        return [((frame + 1) // 2, (frame + 1) % 2)]

    def _add(self, pieces: Pieces, part: int, made: Tensor, first: int) -> None:
        match self._shortcut:
            case Repeated() as repeated:
                corners = repeated.corners(part)
                for target, rows in _doubled(pieces, made, first):
                    for row, column, channels in corners:
                        target[:, :, row::2, column::2].add_(rows[:, channels])
            case Averaged() as averaged:
                channels = averaged.channels(part)
                for target, rows in rows_of_both(made, first, pieces):
                    target[:, channels].add_(rows)
            case _:
                for target, rows in rows_of_both(made, first, pieces):
                    target.add_(rows)


def _doubled(pieces: Pieces, made: Tensor, first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the result, two for each of those that wait."""
    for row, rows in pieces:
        low, high = max(row, first // 2), min(row + rows.shape[2], (first + made.shape[2]) // 2)
        if low < high:
            yield rows_of(made, 2 * low - first, 2 * high - first), rows_of(rows, low - row, high - row)
