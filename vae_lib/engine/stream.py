"""Runs layers as a stream of row bands: each keeps the last rows of its input, so that no row is computed twice.

Rows of the last layer are asked for from top to bottom. How far each layer before it must have come follows from the
last of them: a little further, by what the layers behind it read below their own rows. So the memory is that of a band
in each layer, however high the picture is. The first band takes more rows of the early layers, the last ones fewer.
"""

from __future__ import annotations

import math

from torch import Tensor

from vae_lib.engine.around import Around
from vae_lib.engine.buffers import Pieces, Workspace, joined, rows_of, rows_of_both
from vae_lib.engine.context import Context
from vae_lib.engine.layer import Layer
from vae_lib.engine.linear import Linear
from vae_lib.engine.maps import Arrivals, FeatureMap
from vae_lib.engine.padding import Edge
from vae_lib.engine.passes import INPUT, Chain, Link, LinkedLevel, MapSize, Shortcut, StreamPass


class _Stream:
    """One `StreamPass` over one picture."""

    def __init__(self, step: StreamPass, context: Context) -> None:
        self.step, self.context = step, context
        self.source = source = context.maps[step.source]
        assert source.offset is None
        self.chain = Chain(step.stages, MapSize(source.height, source.width, source.channels))
        self.workspace = Workspace(context.memory)
        self.incoming = Arrivals(source, self.workspace, context.memory.dtype, "source")
        self.kept: list[Tensor | None] = [None] * len(step.stages)  # of each stage's input, its last rows
        levels = [part for part in step.links if isinstance(part, LinkedLevel)]
        self.around = {level: Around(level.shortcut, context.memory) for level in levels}

    def run(self) -> None:
        step, context, chain = self.step, self.context, self.chain
        size = chain.output
        if step.store not in context.maps:
            context.maps[step.store] = FeatureMap(size.height, size.width, size.channels, context.store)
        # the rows above the first ones are the last ones: all of them at once
        rows = size.height if context.padding.height is Edge.CIRCULAR else step.rows
        self._order(0, min(rows, size.height))
        bands = context.memory.bands(size.height, rows, self._period(rows), chain.unsettled(rows))
        for first, last, repeats, following in bands:
            if following is not None:
                self._order(*following)
            band = self._computed(first, last)
            if step.source != INPUT:
                self.source.release(chain.reached(first + repeats * (last - first))[0])
            context.store.retire()  # the band before has had the time of this one to be copied
            context.maps[step.store].append(band, repeats)
            del band
            context.after_band()
        context.store.retire()

    def _period(self, rows: int) -> int:
        """After how many bands the same rows of stored bands are read again."""
        stored, per_band = self.source.band_rows, self.chain.source_row(rows)
        return math.lcm(per_band, stored) // per_band if stored < self.source.height and per_band else 1

    def _order(self, first: int, last: int) -> None:
        """Bring the source's rows that a band reads and the one before it did not."""
        start, end = self.chain.reached(first)[0], self.chain.reached(last)[0]
        if end > start:
            self.incoming.order(start, end)

    def _computed(self, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last - 1`` of the last layer."""
        before, after = self.chain.reached(first), self.chain.reached(last)
        new: Pieces = []
        if after[0] > before[0]:
            new = list(self.incoming.pieces(before[0], after[0]))
        index = 0
        for part in self.step.links:
            links, around = (part.links, self.around[part]) if isinstance(part, LinkedLevel) else ((part,), None)
            if around is not None and new:
                around.took(*new[0])
            for link in links:
                new = self._linked(link, index, new, before, after)
                index += len(link.stages)
            if around is not None and new:
                around.add_to(new[0][1], before[index])
                around.release(after[index])
        (_, band), *_ = new
        return band

    def _linked(self, link: Link, index: int, new: Pieces, before: list[int], after: list[int]) -> Pieces:
        """What the link from stage ``index`` on makes of ``new`` rows; no pieces where that is not a row yet."""
        end = index + len(link.stages)
        entry, made = self._with_kept(index, new, before[index]), None
        for at, stage in enumerate(link.stages, index):
            given = entry if at == index else self._with_kept(at, _piece(before[at], made), before[at])
            needed = max(0, stage.shape.input_rows(after[at + 1], after[at + 1] + 2)[0])
            if at == index and link.shortcut is not None:
                needed = min(needed, after[end])
            rows, window = after[at + 1] - before[at + 1], None
            if rows:
                layer = Layer("window", stage, self.chain.sizes[at], None, self.context, True, True)
                low, _ = stage.shape.input_rows(before[at + 1], after[at + 1])
                window = layer.window(_wrapped(given) if layer.wraps else given, low, rows, self.workspace)
            is_last = after[-1] == self.chain.output.height
            keeps = given and needed < after[at] and not is_last
            self.kept[at] = joined(given, needed, after[at], self.context.memory) if keeps else None
            made = None
            del given  # before more comes
            if window is not None:
                made = layer.convolution(window, rows, self.chain.sizes[at].width, self.workspace)
        if link.shortcut is not None and made is not None:
            self._add(link.shortcut, made, before[end], entry)
        return _piece(before[end], made)

    def _with_kept(self, index: int, new: Pieces, row: int) -> Pieces:
        """The rows that a stage kept, which end before ``row``, and the new ones."""
        kept = self.kept[index]
        return new if kept is None else [(row - kept.shape[2], kept), *new]

    def _add(self, shortcut: Shortcut, band: Tensor, first: int, pieces: Pieces) -> None:
        """To the ``band`` from row ``first`` on these rows, through the 1x1 convolution if there is one."""
        linear = None if shortcut.conv is None else Linear(shortcut.conv, self.context.memory)
        for target, rows in rows_of_both(band, first, pieces):
            if linear is None:
                target.add_(rows)
            else:
                linear.add_to(target, rows)


def _piece(row: int, rows: Tensor | None) -> Pieces:
    return [] if rows is None else [(row, rows)]


def _wrapped(pieces: Pieces) -> Pieces:
    """The whole picture with its last row before the first, and its first row after the last."""
    (top, first), (row, last) = pieces[0], pieces[-1]
    height = row + last.shape[2]
    return [(top - 1, rows_of(last, height - 1 - row, height - row)), *pieces, (height, rows_of(first, 0, 1))]


def run_stream_pass(step: StreamPass, context: Context) -> None:
    _Stream(step, context).run()
