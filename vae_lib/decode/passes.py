"""One pass over a picture in row bands: read a window, run one or more convolutions on it, use the result.

A pass chains stages (normalise, SiLU, convolve) so that what lies between them exists only for a band. Each stage needs
a row more on each side than it gives, so a chain reads a halo and computes those rows again in the next band.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.decode.attention import attend
from vae_lib.decode.buffers import Arrivals, FeatureMap, RowReader, Store, Workspace
from vae_lib.decode.convolution import Convolution, ConvShape, Linear
from vae_lib.decode.normalization import Statistics, normalise
from vae_lib.networks import AttnBlock


@dataclass(frozen=True)
class MapSize:
    """Height, width and channels of an activation."""

    height: int
    width: int
    channels: int

    def bytes(self, dtype: torch.dtype) -> int:
        return self.height * self.width * self.channels * dtype.itemsize


@dataclass(frozen=True)
class Stage:
    """Normalise with the statistics named ``statistics`` and apply SiLU (if there is a norm), then convolve."""

    conv: nn.Conv2d
    shape: ConvShape
    norm: nn.GroupNorm | None = None
    statistics: str = ""


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

    def wraps(self, wrap: bool) -> bool:
        """Whether the pass wraps around the edges: a strided convolution pads with zeros in seamless pictures too."""
        return wrap and self.stages[0].shape.scale != "down"


@dataclass(frozen=True)
class AttentionPass:
    """Self-attention over the map ``source``, in place: ``rows`` of queries at a time, in blocks of ``key_rows``."""

    source: str
    block: AttnBlock
    statistics_in: str
    statistics_out: str
    rows: int
    key_rows: int


Pass = ConvPass | AttentionPass


@dataclass
class Context:
    """What the passes over one picture share. ``after_band`` is called after every band."""

    device: torch.device
    dtype: torch.dtype
    store: Store
    wrap: bool
    after_band: Callable[[], None]
    maps: dict[str, FeatureMap] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)


def bands(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """(first, last) rows of each band; ``last`` is not part of it."""
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


class Chain:
    """The row arithmetic of a pass: which rows each stage reads and computes for a band."""

    def __init__(self, stages: tuple[Stage, ...], source: MapSize, wrap: bool) -> None:
        self._shapes, self._wrap = [stage.shape for stage in stages], wrap
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
        """Rows that each stage computes so that the last one gives rows first..last-1.

        Rows outside the picture are zeros to the next stage and are not computed, unless the picture wraps around.
        """
        ranges: list[tuple[int, int]] = []
        for shape, size in zip(reversed(self._shapes), reversed(self.sizes[1:]), strict=True):
            if not self._wrap:
                first, last = max(first, 0), min(last, size.height)
            first, last = shape.output_rows(first, last)
            ranges.append((first, last))
            first, last = shape.input_rows(first, last)
        return ranges[::-1]

    def source_row(self, row: int) -> int:
        """The source row where output row ``row`` lies: but for the halo, no later band reads rows above it."""
        for shape in reversed(self._shapes):
            row = {"same": row, "up": row // 2, "down": 2 * row}[shape.scale]
        return row


def run_conv_pass(step: ConvPass, context: Context) -> None:
    device, dtype = context.device, context.dtype
    source = context.maps[step.source]
    wrap = step.wraps(context.wrap)
    chain = Chain(step.stages, MapSize(source.height, source.width, source.channels), wrap)
    convolutions = [Convolution(stage.shape, stage.conv, device, dtype) for stage in step.stages]
    affines = [
        None if stage.norm is None else context.statistics[stage.statistics].affine(stage.norm)
        for stage in step.stages
    ]
    shortcut = Linear(step.shortcut.conv, device, dtype) if step.shortcut and step.shortcut.conv else None
    workspace = Workspace(device)
    statistics = Statistics()
    height, width, channels = chain.output.height, chain.output.width, chain.output.channels
    for name in (step.store, step.side):
        if name and name not in context.maps:
            context.maps[name] = FeatureMap(height, width, channels, context.store)
    incoming = Arrivals(source, workspace, dtype, "source")
    reader = RowReader(incoming, chain.halo, wrap, step.changes_source or incoming.brings, device)
    target = incoming  # a band's rows of the source are there to be added to
    if step.add_to and step.add_to != step.source:
        target = Arrivals(context.maps[step.add_to], workspace, dtype, "target")

    def order(first: int, last: int) -> None:
        """What a band reads of its own; the rows above it the reader has."""
        _, high = step.stages[0].shape.input_rows(*chain.computed(first, last)[0])
        incoming.order(chain.source_row(first), min(high, source.height))
        if target is not incoming:
            target.order(first, last)

    todo = list(bands(height, step.rows))
    order(*todo[0])
    for (first, last), following in itertools.zip_longest(todo, todo[1:]):
        if following is not None:
            order(*following)
        ranges = chain.computed(first, last)
        residual: Tensor | None = None
        band: Tensor | None = None
        for index, (stage, convolution) in enumerate(zip(step.stages, convolutions, strict=True)):
            low, high = stage.shape.input_rows(*ranges[index])
            rows, size = ranges[index][1] - ranges[index][0], chain.sizes[index]
            window = workspace.take(f"window {index}", stage.shape.window(rows, size.width), dtype)
            given: list[tuple[int, Tensor]] = [] if band is None else [(ranges[index - 1][0], band)]
            pieces: Iterable[tuple[int, Tensor]] = given or reader.window(low, high)
            fill_window(window, pieces, low, high, size, stage, affines[index], wrap, workspace)
            if step.shortcut is not None and step.shortcut.tap == index:
                pieces = given or reader.window(first, last)
                residual = _take_rows(pieces, first, last, size, shortcut, context)
            del band, given, pieces  # before the stage's result comes
            band = convolution(window, rows, size.width, workspace)
            del window
        assert band is not None
        reader.advance(chain.source_row(last))
        if step.frees_source:
            source.release(chain.source_row(last))
        band = band[first - ranges[-1][0] : last - ranges[-1][0]]
        context.store.retire()  # the band before has had the time of this one to be copied
        if residual is not None and step.side:
            context.maps[step.side].append(residual)
        elif residual is not None:
            band.add_(residual)
        residual = None
        if step.add_to:
            _add_in_place(context.maps[step.add_to], target, first, band)
        if step.statistics:
            statistics.add(band, workspace)
        if step.store:
            context.maps[step.store].append(band)
        context.after_band()
    context.store.retire()
    if step.statistics:
        context.statistics[step.statistics] = statistics


def run_attention_pass(step: AttentionPass, context: Context) -> None:
    device, dtype, block = context.device, context.dtype, step.block
    source = context.maps[step.source]
    height, width, channels = source.height, source.width, source.channels
    scale, shift = context.statistics[step.statistics_in].affine(block.norm)
    query, key, value, project = (
        Linear(m, device, dtype) for m in (block.q, block.k, block.v, block.proj_out)
    )
    workspace = Workspace(device)
    stored = Arrivals(source, workspace, dtype, "source")

    def normalised(first: int, last: int) -> Tensor:
        rows = workspace.take("rows", (last - first, width, channels), dtype)
        for row, piece in stored.pieces(first, last):
            normalise(rows[row - first : row - first + piece.shape[0]], piece, scale, shift, workspace)
        return rows

    keys, values = (FeatureMap(height, width, channels, context.store) for _ in range(2))
    for first, last in bands(height, step.key_rows):
        rows = normalised(first, last)
        context.store.retire()
        keys.append(key(rows))
        values.append(value(rows))
        del rows  # the buffer behind it may have to grow
        context.after_band()
    context.store.retire()
    arrivals = [Arrivals(m, workspace, dtype, name) for m, name in ((keys, "keys"), (values, "values"))]
    query_bands, key_bands = list(bands(height, step.rows)), list(bands(height, step.key_rows))
    reads = itertools.pairwise([*key_bands * len(query_bands), None])
    for each in arrivals:
        each.order(*key_bands[0])

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        """All keys and values, (rows * width, channels) each; the next block is on its way meanwhile."""
        for block, following in itertools.islice(reads, len(key_bands)):
            assert block is not None
            if following is not None and following != block:
                for each in arrivals:
                    each.order(*following)
            for (_, k), (_, v) in zip(*(each.pieces(*block) for each in arrivals), strict=True):
                yield k.flatten(0, 1), v.flatten(0, 1)

    statistics = Statistics()
    for first, last in query_bands:
        q = query(normalised(first, last)).flatten(0, 1)
        attended = attend(q, blocks(), step.key_rows >= height)
        del q
        band = project(attended.view(last - first, width, channels))
        del attended
        context.store.retire()
        _add_in_place(source, stored, first, band)
        statistics.add(band, workspace)
        del band
        context.after_band()
    context.store.retire()
    context.statistics[step.statistics_out] = statistics


def fill_window(
    window: Tensor,
    pieces: Iterable[tuple[int, Tensor]],
    low: int,
    high: int,
    size: MapSize,
    stage: Stage,
    affine: tuple[Tensor, Tensor] | None,
    wrap: bool,
    workspace: Workspace,
) -> None:
    """Lay rows low..high-1 into the padded window, normalised and activated if the stage asks for it.

    What lies outside the picture is zero after the activation, or the opposite edge in a picture that wraps around.
    """
    width, left = size.width, stage.shape.left_padding
    filled_from, filled_to = high, low
    for row, piece in pieces:
        first, last = max(row, low), min(row + piece.shape[0], high)
        if first >= last:
            continue
        rows = window[first - low : last - low, left : left + width]
        piece = piece[first - row : last - row]
        if affine is None:
            rows.copy_(piece)
        else:
            normalise(rows, piece, *affine, workspace)
        filled_from, filled_to = min(filled_from, first), max(filled_to, last)
    window[: filled_from - low].zero_()
    window[filled_to - low :].zero_()
    window[:, :left].zero_()
    window[:, left + width :].zero_()
    if affine is not None:
        F.silu(window, inplace=True)
    if wrap:
        window[:, 0] = window[:, width]
        window[:, width + 1] = window[:, 1]


def _take_rows(
    pieces: Iterable[tuple[int, Tensor]],
    first: int,
    last: int,
    size: MapSize,
    linear: Linear | None,
    context: Context,
) -> Tensor:
    """Rows first..last-1 in a tensor of their own, through the 1x1 convolution if there is one."""
    channels = size.channels if linear is None else linear.out_channels
    out = torch.empty(last - first, size.width, channels, dtype=context.dtype, device=context.device)
    for row, piece in pieces:
        low, high = max(row, first), min(row + piece.shape[0], last)
        if low >= high:
            continue
        target, rows = out[low - first : high - first], piece[low - row : high - row]
        if linear is None:
            target.copy_(rows)
        else:
            linear.into(target, rows)
    return out


def _add_in_place(target: FeatureMap, stored: Arrivals, first: int, band: Tensor) -> None:
    """Add the stored rows from ``first`` on to the band, and the sum takes their place."""
    for row, piece in stored.pieces(first, first + band.shape[0]):
        band[row - first : row - first + piece.shape[0]].add_(piece)
    target.write(first, band)
