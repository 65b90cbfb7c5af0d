"""Between the frames of a video: the layers that make two of one, or one of two, of the rows of a band."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from vae_lib.engine.buffers import Memory, Pieces
from vae_lib.engine.linear import Linear, Pointwise
from vae_lib.engine.passes import BetweenFrames


class Between:
    """One such layer in one video. It sees a frame and the two before; where it doubles, never the first."""

    def __init__(self, part: BetweenFrames, memory: Memory) -> None:
        conv, self._doubles, self._memory = part.conv, part.doubles, memory
        channels, made = conv.in_channels // 3, 2 if part.doubles else 1
        biases = [None] * made if conv.bias is None else conv.bias.chunk(made)
        self._taps = [  # for each frame that is made, of the latest frame first
            [
                Linear(Pointwise(weight.narrow(1, tap * channels, channels), None if tap < 2 else bias), memory)
                for tap in (2, 1, 0)
            ]
            for weight, bias in zip(conv.weight.chunk(made), biases, strict=True)
        ]
        self._earlier: list[Tensor] = []  # rows of the two frames before, the latest first

    def clear(self) -> None:
        """The next rows are the first frame's."""
        self._earlier.clear()

    def frames(self, frame: int, new: Pieces) -> Iterator[tuple[int, Pieces]]:
        """(frame, its rows) of those that frame ``frame``'s ``new`` rows make, one piece at most, or none."""
        if self._doubles:
            yield from self._doubled(frame, new)
        elif frame % 2 == 0:
            yield frame // 2, self._made(0, new) if frame else self._copied(new)
        self._remember(new, frame)

    def _doubled(self, frame: int, new: Pieces) -> Iterator[tuple[int, Pieces]]:
        if not frame:
            yield 0, new
            return
        for later in range(2):
            yield 2 * frame - 1 + later, self._made(later, new)

    def _made(self, number: int, new: Pieces) -> Pieces:
        if not new:
            return []
        (row, rows), *_ = new
        latest, *earlier = self._taps[number]
        made = self._memory.empty(latest.out_channels, rows.shape[2], rows.shape[3])
        latest.into(made, rows)
        for tap, before in zip(earlier, self._earlier, strict=False):
            tap.add_to(made, before)
        return [(row, made)]

    def _copied(self, new: Pieces) -> Pieces:
        """What is done with it then is not to be seen by the next frame."""
        return [(row, self._memory.empty(*rows.shape[1:]).copy_(rows)) for row, rows in new]

    def _remember(self, new: Pieces, frame: int) -> None:
        if new and (frame or not self._doubles):
            self._earlier = [new[0][1], *self._earlier[:1]]
