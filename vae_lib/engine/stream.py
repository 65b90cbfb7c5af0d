"""Runs layers as a stream of row bands: each keeps the last rows of its input, so that no row is computed twice.

Rows of the last layer are asked for from top to bottom. How far each layer before it must have come follows from the
last of them: a little further, by what the layers behind it read below their own rows. So the memory is that of a band
in each layer, however high the picture is. The first band takes more rows of the early layers, the last ones fewer.

Of a video a band goes through all frames before the next band does. What a layer keeps of its last rows it keeps of
every frame; and of the two frames before, the window of this band, which is what the published code keeps of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from vae_lib.engine.around import Around
from vae_lib.engine.between import Between
from vae_lib.engine.buffers import Pieces, Workspace, joined, rows_of, rows_of_both
from vae_lib.engine.context import Context
from vae_lib.engine.layer import Layer
from vae_lib.engine.linear import Linear
from vae_lib.engine.maps import Arrivals, FeatureMap
from vae_lib.engine.padding import Edge
from vae_lib.engine.passes import INPUT, BetweenFrames, Chain, Closes, Link, MapSize, Opens, Shortcut, StreamPass


class _Stream:
    """One `StreamPass` over one picture, or over the frames of a video."""

    def __init__(self, step: StreamPass, contexts: Sequence[Context]) -> None:
        self.step, self.contexts, self.context = step, contexts, contexts[0]
        memory = self.context.memory
        self.sources = sources = [context.maps[step.source] for context in contexts if step.source in context.maps]
        first = sources[0]
        assert first.offset is None
        self.chain = Chain(step.stages, MapSize(first.height, first.width, first.channels))
        self.workspace = Workspace(memory)
        self.incoming = [
            Arrivals(source, self.workspace, memory.dtype, f"source {number % 2}")
            for number, source in enumerate(sources)
        ]
        self.kept: dict[tuple[int, int], Tensor] = {}  # by stage and frame: the last rows of its input
        self.alike: dict[tuple[int, int], Any] = {}  # in the planner's twin: those of frames that one stands for
        self.standing = 1  # frames for which the present one stands
        self.windows: dict[int, list[Tensor]] = {}  # by stage: this band's of the two frames before
        self.layers: dict[int, Layer] = {}  # of a video, whose weights are prepared once
        self.around = {part.shortcut: Around(part.shortcut, memory) for part in step.parts if isinstance(part, Opens)}
        between = [part for part in step.parts if isinstance(part, BetweenFrames)]
        self.between = {part: Between(part, memory) for part in between}

    def run(self) -> None:
        step, context, chain = self.step, self.context, self.chain
        size = chain.output
        # the rows above the first ones are the last ones: all of them at once
        rows = size.height if context.padding.height is Edge.CIRCULAR else step.rows
        self._order(0, 0, min(rows, size.height))
        bands = context.memory.bands(size.height, rows, self._period(rows), chain.unsettled(rows))
        for first, last, repeats, following in bands:
            before, after = chain.reached(first), chain.reached(last)
            for frame, source in enumerate(self.sources):
                if frame + 1 < len(self.sources):
                    self._order(frame + 1, first, last)
                elif following is not None:
                    self._order(0, *following)
                with context.memory.repeated(source.frames):
                    for number, band in self._computed(frame, before, after):
                        if step.source != INPUT:
                            source.release(chain.reached(first + repeats * (last - first))[0])
                        context.store.retire()  # the band before has had the time of this one to be copied
                        self._stored(number, source.frames).append(band, repeats)
                        del band
                context.after_band()
            self.windows.clear()
            for between in self.between.values():
                between.clear()
        context.store.retire()

    def _stored(self, number: int, frames: int) -> FeatureMap:
        """The map of a frame that is made, which stands for as many as that of which it is made."""
        maps, size = self.contexts[number].maps, self.chain.output
        if self.step.store not in maps:
            made = FeatureMap(size.height, size.width, size.channels, self.context.store, frames=frames)
            maps[self.step.store] = made
        return maps[self.step.store]

    def _period(self, rows: int) -> int:
        """After how many bands the same rows of stored bands are read again."""
        source = self.sources[0]
        stored, per_band = source.band_rows, self.chain.source_row(rows)
        return math.lcm(per_band, stored) // per_band if stored < source.height and per_band else 1

    def _order(self, frame: int, first: int, last: int) -> None:
        """Bring the source's rows that a band reads and the one before it did not."""
        start, end = self.chain.reached(first)[0], self.chain.reached(last)[0]
        if end > start:
            with self.context.memory.repeated(self.sources[frame].frames):
                self.incoming[frame].order(start, end)

    def _computed(self, frame: int, before: list[int], after: list[int]) -> Iterator[tuple[int, Tensor]]:
        """(frame, its rows of the last layer) of what a frame of the source makes."""
        new: Pieces = []
        if after[0] > before[0]:
            new = list(self.incoming[frame].pieces(before[0], after[0]))
        self.standing = self.sources[frame].frames
        return self._passed(0, 0, frame, new, before, after)

    def _passed(
        self, position: int, index: int, frame: int, new: Pieces, before: list[int], after: list[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """The same of new rows that go through the parts from ``position`` and stage ``index`` on."""
        for at, part in enumerate(self.step.parts[position:], position):
            match part:
                case Link():
                    new = self._linked(part, index, frame, new, before, after)
                    index += len(part.stages)
                case BetweenFrames():
                    for number, made in self.between[part].frames(frame, new):
                        yield from self._passed(at + 1, index, number, made, before, after)
                    return
                case Opens(shortcut) if new:
                    self.around[shortcut].took(frame, *new[0])
                case Closes(shortcut) if new:
                    self.around[shortcut].add_to(frame, new[0][1], before[index], after[index], self.standing)
        (_, band), *_ = new
        yield frame, band

    def _linked(self, link: Link, index: int, frame: int, new: Pieces, before: list[int], after: list[int]) -> Pieces:
        """What the link from stage ``index`` on makes of ``new`` rows; no pieces where that is not a row yet."""
        end = index + len(link.stages)
        entry, made = self._with_kept(index, frame, new, before[index]), None
        for at, stage in enumerate(link.stages, index):
            given = entry if at == index else self._with_kept(at, frame, _piece(before[at], made), before[at])
            needed = max(0, stage.shape.input_rows(after[at + 1], after[at + 1] + 2)[0])
            if at == index and link.shortcut is not None:
                needed = min(needed, after[end])
            rows, windows = after[at + 1] - before[at + 1], list[Tensor]()
            if rows:
                layer = self._layer(at)
                low, _ = stage.shape.input_rows(before[at + 1], after[at + 1])
                window = layer.window(_wrapped(given) if layer.wraps else given, low, rows, self.workspace)
                windows = [*self.windows.get(at, ()), window]
                if stage.taps > 1:
                    self.windows[at] = windows[-2:]
                del window
            is_last = after[-1] == self.chain.output.height
            self.kept.pop((at, frame), None)
            self.alike.pop((at, frame), None)
            if given and needed < after[at] and not is_last:
                self._keep(at, frame, joined(given, needed, after[at], self.context.memory))
            made = None
            del given  # before more comes
            if windows:
                made = layer.convolution.over_frames(windows, rows, self.chain.sizes[at].width, self.workspace)
        if link.shortcut is not None and made is not None:
            self._add(link.shortcut, made, before[end], entry)
        return _piece(before[end], made)

    def _keep(self, at: int, frame: int, rows: Any) -> None:
        """Of a video, where its activations rest: there are many frames of them."""
        if len(self.sources) > 1:
            rows = self.context.store.put(rows)
        self.kept[at, frame] = rows
        if self.standing > 1:
            self.alike[at, frame] = rows.pile(self.standing - 1)

    def _layer(self, at: int) -> Layer:
        if (layer := self.layers.get(at)) is None:
            layer = Layer("window", self.step.stages[at], self.chain.sizes[at], None, self.context, True, True)
            if len(self.sources) > 1:
                self.layers[at] = layer
        return layer

    def _with_kept(self, index: int, frame: int, new: Pieces, row: int) -> Pieces:
        """The rows that a stage kept, which end before ``row``, and the new ones."""
        kept, transfers = self.kept.get((index, frame)), self.context.store.transfers
        if kept is None:
            return new
        if transfers is not None and len(self.sources) > 1:
            brought = self.context.memory.empty(*kept.shape[1:])
            transfers.wait(transfers.bring(brought, kept))
            kept = brought
        return [(row - kept.shape[2], kept), *new]

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


def run_stream_pass(step: StreamPass, contexts: Sequence[Context]) -> None:
    """``contexts``: one for a picture, or for each frame of a video that is given or made."""
    _Stream(step, contexts).run()
