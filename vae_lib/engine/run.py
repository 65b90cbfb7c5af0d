"""Runs a pass of convolutions over one picture: read a window, compute a band, use the result.

A band that is the whole picture takes the kernels' own padding, and is normalised in place where nobody else needs it.
What runs here is also what the planner counts: the arrays are PyTorch's or `Counted`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from vae_lib.engine.buffers import Workspace, rows_of, rows_of_both
from vae_lib.engine.context import Context, add_in_place
from vae_lib.engine.layer import Layer
from vae_lib.engine.linear import Linear
from vae_lib.engine.maps import Arrivals, FeatureMap, RowReader
from vae_lib.engine.normalization import Statistics
from vae_lib.engine.passes import OUTPUT, Chain, ConvPass, MapSize


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Of two offsets, of which None is zero; in float32."""
    return a if b is None else b if a is None else a.float() + b


class _ConvRun:
    """One `ConvPass` over one picture."""

    def __init__(self, step: ConvPass, context: Context) -> None:
        self.step, self.context, memory = step, context, context.memory
        self.source = source = context.maps[step.source]
        self.chain = chain = Chain(step.stages, MapSize(source.height, source.width, source.channels))
        self.layers: list[Layer] = []
        offset, self.tap_offset = source.offset, None
        for index, stage in enumerate(step.stages):
            if step.shortcut is not None and step.shortcut.tap == index:
                self.tap_offset = offset
            last = step.store == OUTPUT and index == len(step.stages) - 1
            self.layers.append(Layer(f"window {index}", stage, chain.sizes[index], offset, context, last))
            offset = self.layers[-1].convolution.offset
        self.offset = offset
        self.linear: Linear | None = None
        if step.shortcut is not None and step.shortcut.conv is not None:
            self.linear = Linear(step.shortcut.conv, memory, self.tap_offset)
            self.tap_offset = self.linear.offset
        self.workspace = Workspace(memory)
        self.incoming = Arrivals(source, self.workspace, memory.dtype, "source")
        changes = step.changes_source or self.incoming.brings
        self.reader = RowReader(self.incoming, chain.halo, self.layers[0].wraps, changes, memory)
        self.target = self.incoming  # a band's rows of the source are there to be added to
        if step.add_to and step.add_to != step.source:
            self.target = Arrivals(context.maps[step.add_to], self.workspace, memory.dtype, "target")
        self.statistics = Statistics()

    def run(self) -> None:
        step, context, chain = self.step, self.context, self.chain
        size = chain.output
        for name in (step.store, step.side):
            if name and name not in context.maps:
                context.maps[name] = FeatureMap(size.height, size.width, size.channels, context.store)
        self._order(0, min(step.rows, size.height))
        for first, last, repeats, following in context.memory.bands(size.height, step.rows, self._period()):
            if following is not None:
                self._order(*following)
            self._band(first, last, repeats)
            context.after_band()
        context.store.retire()
        if step.statistics:
            context.statistics[step.statistics] = self.statistics
        self._pass_offsets_on()

    def _period(self) -> int:
        """After how many bands the same rows of stored bands are read and written again."""
        period, rows = 1, self.step.rows
        for stored, per_band in (
            (self.source, self.chain.source_row(rows)),
            (self.context.maps.get(self.step.add_to), rows),
        ):
            if stored is not None and stored.band_rows < stored.height:
                period = math.lcm(period, math.lcm(per_band, stored.band_rows) // per_band)
        return period

    def _order(self, first: int, last: int) -> None:
        """Bring what a band reads of its own; the rows above it the reader has."""
        _, high = self.step.stages[0].shape.input_rows(*self.chain.computed(first, first + self.step.rows)[0])
        self.incoming.order(self.chain.source_row(first), min(high, self.source.height))
        if self.target is not self.incoming:
            self.target.order(first, last)

    def _band(self, first: int, last: int, repeats: int) -> None:
        """Rows ``first`` to ``last - 1``, which stand for ``repeats`` bands."""
        step, context, chain, workspace = self.step, self.context, self.chain, self.workspace
        band, residual = self._computed(first, last)
        end = first + repeats * (last - first)
        self.reader.advance(chain.source_row(last), chain.source_row(end))
        if step.frees_source:
            self.source.release(chain.source_row(end))
        context.store.retire()  # the band before has had the time of this one to be copied
        if residual is not None and step.side:
            context.maps[step.side].append(residual, repeats)
        elif residual is not None:
            band.add_(residual)
        del residual
        if step.add_to:
            add_in_place(context.maps[step.add_to], self.target, first, band)
        if step.statistics:
            self.statistics.add(band, workspace, repeats)
        if step.store:
            context.maps[step.store].append(band, repeats)

    def _computed(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """The rows, and what a shortcut adds to them."""
        step, chain, workspace = self.step, self.chain, self.workspace
        whole = self._whole_picture(first, last)
        ranges = chain.computed(first, first + step.rows)
        residual = band = None
        for index, layer in enumerate(self.layers):
            low, high = layer.shape.input_rows(*ranges[index])
            rows, size = ranges[index][1] - ranges[index][0], chain.sizes[index]

            def pieces(start: int, end: int, above: Tensor | None, top: int) -> Iterable[tuple[int, Tensor]]:
                return self.reader.window(start, end) if above is None else [(top, above)]

            top = ranges[index - 1][0]
            if step.shortcut is not None and step.shortcut.tap == index:
                residual = self._residual(pieces(first, last, band, top), first, last, size)
            if whole is not None:
                own = step.frees_source and self.source.surrender()
                window, rows = layer.activated(whole, own, workspace), chain.output.height
            else:
                window = layer.window(pieces(low, high, band, top), low, rows, workspace)
            del band
            band = layer.convolution(window, rows, size.width, workspace, whole is not None)
            del window
        assert band is not None
        top = ranges[-1][0]
        return (band if whole is not None else rows_of(band, first - top, last - top)), residual

    def _whole_picture(self, first: int, last: int) -> Tensor | None:
        """The source itself, if it lies here in one piece and the pass can take it as its window."""
        if len(self.layers) > 1 or not self.layers[0].pads or last - first < self.chain.output.height:
            return None
        return self.source.picture

    def _residual(self, pieces: Iterable[tuple[int, Tensor]], first: int, last: int, size: MapSize) -> Tensor:
        """Rows first..last-1 in an array of their own, through the 1x1 convolution if there is one."""
        channels = size.channels if self.linear is None else self.linear.out_channels
        out = self.context.memory.empty(channels, last - first, size.width)
        for target, rows in rows_of_both(out, first, pieces):
            if self.linear is None:
                target.copy_(rows)
            else:
                self.linear.into(target, rows)
        return out

    def _pass_offsets_on(self) -> None:
        """What is still to be added to the maps that were made."""
        step, maps, offset = self.step, self.context.maps, self.offset
        if step.side:
            maps[step.side].offset = self.tap_offset
        elif step.shortcut is not None:
            offset = _sum(offset, self.tap_offset)
        if step.add_to:
            maps[step.add_to].offset = _sum(maps[step.add_to].offset, offset)
        if step.store:
            maps[step.store].offset = offset


def run_conv_pass(step: ConvPass, context: Context) -> None:
    _ConvRun(step, context).run()
