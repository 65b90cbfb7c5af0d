"""The passes over a picture, described: what is read, computed and stored, and how many rows at a time.

A pass chains stages (normalise, SiLU, convolve) so that what lies between them exists only for a band. Each stage needs
a row more on each side than it gives, so a chain reads a halo and computes those rows again in the next band.
`vae_lib.engine.run` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vae_lib.engine.convolution import ConvShape
from vae_lib.engine.linear import Pointwise
from vae_lib.networks import Norm

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class MapSize:
    """Height, width and channels of an activation."""

    height: int
    width: int
    channels: int

    def bytes(self, dtype: torch.dtype) -> int:
        return self.height * self.width * self.channels * dtype.itemsize


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into bands. The choice changes memory and time, never the picture.

    Attributes:
        band_bytes: size to aim at for one band of a layer's activation; a band has at least 2 rows.
        recompute: resolutions, counted from the picture's own downwards, whose inner activations are computed again
            when they are needed instead of kept.
        offload: whether activations rest in host memory between passes.
        attention_bytes: size to aim at for one block of attention scores.
    """

    band_bytes: int
    recompute: int = 0
    offload: bool = False
    attention_bytes: int = 32 << 20

    def rows(self, size: MapSize, dtype: torch.dtype) -> int:
        """Rows per band: an even number (so that bands fall on whole pixels of the smaller resolution), and about the
        same in every band, the last one too.
        """
        row = size.width * size.channels * dtype.itemsize
        count = -(-size.height // max(2, self.band_bytes // row // 2 * 2))
        return -(-size.height // count // 2) * 2


@dataclass(frozen=True)
class Stage:
    """Normalise with the statistics named ``statistics`` and apply SiLU (if there is a norm), then convolve.

    ``taps``: frames of a video that the convolution sees, whose channels lie one after the other, the latest last.
    """

    conv: nn.Conv2d
    shape: ConvShape
    norm: Norm | None = None
    statistics: str = ""
    taps: int = 1


@dataclass(frozen=True)
class Shortcut:
    """What a residual block adds: the input of stage ``tap`` as it is, or through a 1x1 convolution."""

    tap: int
    conv: nn.Conv2d | None


@dataclass(frozen=True)
class ConvPass:
    """Run ``stages`` over the map ``source``, ``rows`` output rows at a time.

    What comes out goes to the new map ``store``, or is added in place to the map ``add_to``, or (with neither) only
    gives the statistics named ``statistics``. With ``side`` the shortcut becomes a map of its own and is not added.
    ``frees_source`` frees the source's rows as soon as no later band needs them.
    """

    source: str
    stages: tuple[Stage, ...]
    rows: int
    store: str = ""
    add_to: str = ""
    statistics: str = ""
    shortcut: Shortcut | None = None
    side: str = ""
    frees_source: bool = False

    @property
    def changes_source(self) -> bool:
        return self.frees_source or self.add_to == self.source


@dataclass(frozen=True)
class AttentionPass:
    """Self-attention over the map ``source``, in place: ``rows`` of queries at a time, in blocks of ``key_rows``.

    ``projections`` make queries, keys and values, and the result of what was attended. Without ``statistics_out`` none
    are gathered of it.
    """

    source: str
    norm: Norm
    projections: tuple[nn.Conv2d | Pointwise, ...]
    rows: int
    key_rows: int
    statistics_in: str = ""
    statistics_out: str = ""


@dataclass(frozen=True)
class Link:
    """A part of a stream: ``stages`` one after the other, and what a residual block adds to them, if it is one."""

    stages: tuple[Stage, ...]
    shortcut: Shortcut | None = None


@dataclass(frozen=True)
class BetweenFrames:
    """Of a video: ``conv``, 1x1 over three frames, makes two frames of each but the first, or one of two of them."""

    conv: nn.Conv2d

    @property
    def doubles(self) -> bool:
        return self.conv.in_channels // 3 < self.conv.out_channels

    def frames(self, given: int) -> int:
        """Of so many."""
        return 2 * given - 1 if self.doubles else (given + 1) // 2


@dataclass(frozen=True)
class Opens:
    """Here a level begins that has a ``shortcut`` around it: the same rows, averaged to half, or repeated to twice."""

    shortcut: nn.Module


@dataclass(frozen=True)
class Closes:
    """Here it ends: what its ``shortcut`` makes of the rows that came in is added."""

    shortcut: nn.Module


Part = Link | BetweenFrames | Opens | Closes


@dataclass(frozen=True)
class StreamPass:
    """Run ``parts`` over the map ``source`` into the map ``store``, ``rows`` output rows at a time.

    For norms that need no statistics. Of its input each stage keeps the last rows for the next band, instead of reading
    and computing a halo again.
    """

    source: str
    parts: tuple[Part, ...]
    rows: int
    store: str

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for part in self.parts if isinstance(part, Link) for stage in part.stages)

    def frames(self, given: int) -> int:
        """Of a video that come out where so many go in."""
        for part in self.parts:
            if isinstance(part, BetweenFrames):
                given = part.frames(given)
        return given


Pass = ConvPass | AttentionPass | StreamPass


class Chain:
    """The row arithmetic of a pass: which rows each stage reads and computes for a band.

    Rows outside the picture are computed like any others and never used, so that every band has the same shapes.
    """

    def __init__(self, stages: tuple[Stage, ...], source: MapSize) -> None:
        self._shapes = [stage.shape for stage in stages]
        self.sizes = [source]
        for shape in self._shapes:
            height, width = shape.output_size(self.sizes[-1].height, self.sizes[-1].width)
            self.sizes.append(MapSize(height, width, shape.out_channels))

    @property
    def output(self) -> MapSize:
        return self.sizes[-1]

    @property
    def halo(self) -> int:
        """Source rows above a band's own that it reads."""
        need = 0
        for shape in reversed(self._shapes):
            need = {"same": need + 1, "up": (need + 1) // 2 + 1, "down": 2 * need}[shape.scale]
        return need

    def computed(self, first: int, last: int) -> list[tuple[int, int]]:
        """Rows that each stage computes so that the last one gives rows first..last-1."""
        ranges: list[tuple[int, int]] = []
        for shape in reversed(self._shapes):
            first, last = shape.output_rows(first, last)
            ranges.append((first, last))
            first, last = shape.input_rows(first, last)
        return ranges[::-1]

    def source_row(self, row: int) -> int:
        """The source row where output row ``row`` lies: but for the halo, no later band reads rows above it."""
        for shape in reversed(self._shapes):
            row = {"same": row, "up": row // 2, "down": 2 * row}[shape.scale]
        return row

    def reached(self, last: int) -> list[int]:
        """Rows of the source, and of each stage, that there must be for the first ``last`` rows of the last stage."""
        if not last:
            return [0] * len(self.sizes)
        rows = [last]
        for shape, size in zip(reversed(self._shapes), reversed(self.sizes[:-1]), strict=True):
            rows[-1] = shape.output_rows(0, rows[-1])[1]
            rows.append(min(size.height, shape.input_rows(0, rows[-1])[1]))
        return rows[::-1]

    def unsettled(self, step: int) -> int:
        """Rows above the last stage's end from which on some stage is done, in steps of ``step``: before them, all
        bands of a stream but the first take the same rows of each stage.
        """
        border, heights = step, [size.height for size in self.sizes[:-1]]
        while border < self.output.height and any(
            rows >= height for rows, height in zip(self.reached(self.output.height - border), heights, strict=False)
        ):
            border += step
        return border


def count_bands(passes: list[Pass], source: MapSize) -> int:
    """How many bands `run` reports for one picture."""
    sizes, total = {INPUT: source}, 0
    for step in passes:
        size = out = sizes[step.source]
        if isinstance(step, ConvPass):
            out = Chain(step.stages, size).output
            sizes |= {name: out for name in (step.store, step.side) if name}
        elif isinstance(step, StreamPass):
            out = sizes[step.store] = Chain(step.stages, size).output
        else:
            total += -(-size.height // step.key_rows)
        total += -(-out.height // step.rows)
    return total
