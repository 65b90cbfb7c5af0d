"""One layer of a network where it runs: its convolution, what its input is normalised with, and its padded window."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_lib.device import kernels
from vae_lib.engine.buffers import Workspace, rows_of
from vae_lib.engine.context import Context
from vae_lib.engine.convolution import Convolution
from vae_lib.engine.normalization import ChannelNormaliser, Normaliser
from vae_lib.engine.padding import Edge
from vae_lib.engine.passes import MapSize, Stage


class Layer:
    """A stage made ready for a pass: its weights, what its input is normalised with, and its window."""

    def __init__(
        self,
        name: str,
        stage: Stage,
        size: MapSize,
        given_offset: Tensor | None,
        context: Context,
        last: bool,
        shares_window: bool = False,
    ) -> None:
        """
        Args:
            name: of the window's buffer.
            given_offset: still to be added to the input.
            last: nothing after it could add its bias.
            shares_window: the buffer is another layer's as well, so that nothing in it is still what it was.
        """
        memory = context.memory
        self.shape, self._size, self._name = stage.shape, size, name
        self.taps = stage.taps
        scale, padding = stage.shape.scale, context.padding
        self._above_and_below = padding.height.stand_ins(size.height, scale)
        self._beside = padding.width.stand_ins(size.width, scale)
        self.wraps = padding.height is Edge.CIRCULAR and self._above_and_below is not None
        apart = kernels.of(memory.device, memory.dtype).bias_apart and not last
        self.convolution = Convolution(stage.shape, stage.conv, memory, apart)
        self._shares_window = shares_window
        self._normaliser: Normaliser | ChannelNormaliser | None = None
        self._silu = stage.norm is not None
        if stage.norm is not None:
            self._normaliser = context.normaliser(stage.norm, stage.statistics, given_offset)
        elif given_offset is not None:
            nothing = memory.full(size.channels, 0.0), memory.full(size.channels, 1.0)
            self._normaliser = Normaliser(nothing[1], given_offset.float(), *nothing)
        if self._normaliser is not None and not stage.shape.pads:
            self._normaliser = self._normaliser.for_gaps()
        if self._normaliser is not None and self._silu:
            self._normaliser = self._normaliser.with_silu(memory.device, memory.dtype)
            self._silu = not self._normaliser.silu

    @property
    def pads(self) -> bool:
        """Whether the kernel can do all the padding."""
        return self.shape.pads and self._above_and_below is None

    def activated(self, picture: Tensor, own: bool, workspace: Workspace) -> Tensor:
        """The whole picture normalised and activated, in place if it is the pass's ``own``."""
        if self._normaliser is None:
            return picture
        out = picture if own else torch.empty_like(picture)
        self._normaliser(out, picture, workspace)
        return F.silu(out, inplace=True) if self._silu else out

    def window(self, pieces: Iterable[tuple[int, Tensor]], low: int, rows: int, workspace: Workspace) -> Tensor:
        """The padded window from row ``low`` on for ``rows`` output rows, normalised and activated.

        What lies outside the picture is zero after the activation, or what the padding puts there. With zeros nothing
        writes above the picture's first row or beside it: there the buffer still has its first ones. A video's is an
        array of its own, for the frames that follow see it too.
        """
        size, left = self._size, self.shape.left_padding
        _, height, columns = self.shape.window(rows, size.width)
        if self.taps > 1:
            window = workspace.memory.empty(self.shape.in_channels // self.taps, height, columns)
        else:
            window = workspace.band(self._name, (self.shape.in_channels, height, columns), workspace.memory.dtype)
        inside = window if columns == size.width else window.narrow(3, left, size.width)
        if self._shares_window:
            _clear_around(window, low, left, size.width)
        filled_to = max(low, 0)
        for row, piece in pieces:
            first, last = max(row, low), min(row + piece.shape[2], low + height)
            if not self.wraps:
                first, last = max(first, 0), min(last, size.height)
            if first >= last:
                continue
            target, piece = rows_of(inside, first - low, last - low), rows_of(piece, first - row, last - row)
            if self._normaliser is None:
                target.copy_(piece)
            else:
                self._normaliser(target, piece, workspace)
            filled_to = last
        if filled_to < low + height:
            window.narrow(2, filled_to - low, low + height - filled_to).zero_()
        if self._silu:
            F.silu(window, inplace=True)
        if not self.wraps:  # else the rows beyond have been read like the others
            _pad(window, 2, low, size.height, self._above_and_below)
        _pad(window, 3, -left, size.width, self._beside)
        return window


def _clear_around(window: Tensor, low: int, left: int, width: int) -> None:
    """Zeros above the picture's first row, and beside its ``width`` columns that begin at ``left``."""
    if low < 0:
        window.narrow(2, 0, -low).zero_()
    if left:
        window.narrow(3, 0, left).zero_()
    if left + width < window.shape[3]:
        window.narrow(3, left + width, window.shape[3] - left - width).zero_()


def _pad(window: Tensor, axis: int, low: int, size: int, stand_ins: tuple[int, int] | None) -> None:
    """Fill what the window, from row (or column) ``low`` on, has of those just before and just after the picture's."""
    for outside, inside in () if stand_ins is None else zip((-1, size), stand_ins, strict=True):
        if low <= outside < low + window.shape[axis]:
            window.narrow(axis, outside - low, 1).copy_(window.narrow(axis, inside - low, 1))
