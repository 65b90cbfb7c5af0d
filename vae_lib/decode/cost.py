"""What a list of passes will cost: peak memory, arithmetic, traffic. It walks the passes as the engine runs them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from vae_lib.decode import transfers
from vae_lib.decode.attention import attend_bytes, is_fused
from vae_lib.decode.buffers import nbytes
from vae_lib.decode.convolution import Linear
from vae_lib.decode.normalization import (
    fused_statistics_bytes,
    has_fused_statistics,
    mixes_dtypes,
    stretch_rows,
)
from vae_lib.decode.passes import AttentionPass, Chain, ConvPass, MapSize, Pass, bands
from vae_lib.decode.program import INPUT, OUTPUT


@dataclass
class Cost:
    """Cost of decoding or encoding one picture.

    Attributes:
        peak_bytes: most bytes alive at once on the device; the weights themselves are not counted, the copies that a
            pass prepares of them are.
        multiplications: scalar multiplications of convolutions, matrix products and attention.
        moved_bytes: bytes of activations read and written by everything else.
        transferred_bytes: bytes copied between host and device.
        exposed_bytes: those of them that nothing is computed beside: what a pass reads first and writes last.
        host_bytes: most bytes of activations that rest off the device at once.
        bands: bands processed.
    """

    peak_bytes: int = 0
    multiplications: int = 0
    moved_bytes: int = 0
    transferred_bytes: int = 0
    exposed_bytes: int = 0
    host_bytes: int = 0
    bands: int = 0


def walk(passes: list[Pass], source: MapSize) -> Iterator[tuple[Pass, MapSize, MapSize]]:
    """(pass, size of its source, size of its output) for each pass."""
    sizes = {INPUT: source}
    for step in passes:
        size = sizes[step.source]
        out = size
        if isinstance(step, ConvPass):
            out = Chain(step.stages, size, False).output
            for name in (step.store, step.side):
                if name:
                    sizes[name] = out
        yield step, size, out


def count_bands(passes: list[Pass], source: MapSize) -> int:
    """How many bands the engine will report for one picture."""
    total = 0
    for step, size, out in walk(passes, source):
        total += -(-out.height // step.rows)
        if isinstance(step, AttentionPass):
            total += -(-size.height // step.key_rows)
    return total


# Rows from the edge of a picture within which a band may need fewer rows than one further in.
BORDER = 16


def _is_inner(first: int, last: int, rows: int, height: int) -> bool:
    """Whether a band is like every other in the middle of the picture."""
    return last - first == rows and first >= BORDER and last <= height - BORDER


def _sampled(todo: list[tuple[int, int]], rows: int, height: int, period: int) -> Iterator[tuple[int, int]]:
    """(band, how many from it on are counted by it): of those alike, a few at both ends one by one.

    What is kept grows and what is freed shrinks steadily, but for steps that repeat after ``period`` bands, so the most
    is alive near one of the ends.
    """
    inner = [index for index, (first, last) in enumerate(todo) if _is_inner(first, last, rows, height)]
    single = period + 1
    skipped = inner[single:-single] if len(inner) > 2 * single + 1 else []
    for index in range(len(todo)):
        if not skipped or not skipped[0] <= index <= skipped[-1]:
            yield index, 1
        elif index == skipped[0]:
            yield index, len(skipped)


@dataclass
class _Band:
    """One band of a pass, in bytes: at its peak, what is held afterwards, what was read and moved."""

    peak: int = 0
    held: int = 0
    residual: int = 0
    read: int = 0
    moved: int = 0
    multiplications: int = 0


@dataclass
class _Simulation:
    device: torch.device
    dtype: torch.dtype
    on_device: bool  # activations rest on the device
    wrap: bool
    resident: bool  # weights are on the device, in dtype
    maps: dict[str, int] = field(default_factory=dict)  # bytes on the device
    host_maps: dict[str, int] = field(default_factory=dict)  # bytes that rest elsewhere
    statistics: dict[str, int] = field(default_factory=dict)  # stretches gathered
    workspace: dict[str, int] = field(default_factory=dict)  # bytes
    workspace_bytes: int = 0
    new_statistics: int = 0
    weights: int = 0
    leaving: int = 0  # bytes of the last band that are being copied to the host
    cost: Cost = field(default_factory=Cost)

    @property
    def brings(self) -> bool:
        """Whether stored rows are copied to the device to be used."""
        return not self.on_device and transfers.kind_for(self.device) is not None

    def peak(self, transient: int = 0) -> None:
        live = sum(self.maps.values()) + self.workspace_bytes + self.weights + self.leaving + transient
        if live > self.cost.peak_bytes:
            self.cost.peak_bytes = live

    def take(self, name: str, size: int) -> None:
        """A scratch buffer of at least this size, kept until the end of the pass."""
        before = self.workspace.get(name, 0)
        if size > before:
            self.workspace[name] = size
            self.workspace_bytes += size - before

    def begin(self) -> None:
        """A new pass: the scratch buffers and prepared weights of the last one are gone."""
        self.workspace.clear()
        self.workspace_bytes = self.weights = self.leaving = 0

    def normalise(self, rows: int, width: int, channels: int) -> None:
        """Rows brought to float32 to be normalised, where PyTorch cannot mix dtypes."""
        if not mixes_dtypes(self.device, self.dtype):
            self.take("normalised", stretch_rows(rows, width, channels, self.device) * width * channels * 4)

    def gather(self, name: str, rows: int, size: MapSize, times: int = 1) -> None:
        """Statistics of a band, or of several."""
        step = stretch_rows(rows, size.width, size.channels, self.device)
        fused = has_fused_statistics(self.device, self.dtype)
        if fused:
            self.take("statistics", fused_statistics_bytes(size.channels))
        else:
            self.take("deviation", step * size.width * size.channels * 4)
        self.new_statistics += times * -(-rows // step)
        self.maps["new statistics"] = self.new_statistics * 2 * size.channels * 4
        elements = times * rows * size.width * size.channels
        self.cost.moved_bytes += elements * self.dtype.itemsize * (1 if fused else 4)

    def gathered(self, name: str) -> None:
        """The statistics of the pass are complete and replace older ones of the same name."""
        self.statistics[name], self.new_statistics = self.new_statistics, 0
        self.maps[f"statistics of {name}"] = self.maps.pop("new statistics")

    def store(self, name: str, size: int) -> None:
        if name != OUTPUT and self.on_device:
            self.maps[name] = self.maps.get(name, 0) + size
        elif name != OUTPUT:
            self.cost.transferred_bytes += size
            self.host_maps[name] = self.host_maps.get(name, 0) + size
            self.cost.host_bytes = max(self.cost.host_bytes, sum(self.host_maps.values()))

    def release(self, name: str, before: int, size: MapSize, rows: int) -> None:
        """Bands of ``rows`` rows that end above row ``before`` are freed."""
        if name != INPUT:
            left = size.height if before < rows else size.height - before // rows * rows
            row = size.width * size.channels * self.dtype.itemsize
            maps = self.maps if self.on_device else self.host_maps
            maps[name] = max(0, 0 if before >= size.height else left) * row

    def conv_pass(self, step: ConvPass, source: MapSize, stored_rows: dict[str, int]) -> None:
        size, wrap = self.dtype.itemsize, step.wraps(self.wrap)
        chain = Chain(step.stages, source, wrap)
        out = chain.output
        self.begin()
        self.prepare(step)
        source_row = source.width * source.channels * size
        tail, brings = 0, self.brings and step.source != INPUT
        changes = step.changes_source or brings
        if changes and wrap:
            head = min(chain.halo, source.height) * source_row
            self.take("source late", head * brings)
            self.peak(head)
            self.weights += head  # the copy of the top rows

        inner: _Band | None = None
        todo = list(bands(out.height, step.rows))
        source_rows, freed_rows = chain.source_row(step.rows), stored_rows.get(step.source, 1)
        period = math.lcm(source_rows, freed_rows) // source_rows if step.frees_source else 1
        self.order(step, chain, source, todo[0], 0, brings)
        for index, times in _sampled(todo, step.rows, out.height, period):
            first, last = todo[index]
            following = index + times
            if following < len(todo):
                self.order(step, chain, source, todo[following], following, brings)
            is_inner = _is_inner(first, last, step.rows, out.height)
            if is_inner and inner is not None:
                band = inner
                self.peak(band.peak + tail)
            else:
                band = self._band(step, chain, first, last, tail)
                inner = band if is_inner else inner
            cost, rows = self.cost, last - first
            cost.multiplications += times * band.multiplications
            cost.moved_bytes += times * band.moved
            before = cost.transferred_bytes
            cost.transferred_bytes += times * band.read * (not self.on_device) * (step.source != INPUT)
            held, residual, above = band.held, band.residual, chain.source_row(todo[following - 1][1])
            if changes:
                new = min(chain.halo, above) * source_row
                self.peak(held + residual + tail + new)
                tail = new
            if step.frees_source:
                self.release(step.source, above, source, freed_rows)
            self.leaving = 0
            if step.side:
                self.store(step.side, times * residual)
                self.leaving += residual * self.brings
                residual = 0
            if step.add_to:
                copies = 1 if step.add_to == step.source else 2  # the source's rows are there already
                cost.transferred_bytes += times * held * (not self.on_device) * copies
                cost.moved_bytes += times * 3 * held
            if step.statistics:
                self.gather(step.statistics, rows, out, times)
            self.peak(held + residual + tail)
            if step.store:
                self.store(step.store, times * held)
                held = 0 if step.store != OUTPUT and self.on_device else held
            self.peak(held + tail)
            if self.brings and (step.store not in ("", OUTPUT) or step.add_to):
                self.leaving += held  # a part of the band holds all of it
            if index in (0, len(todo) - 1):
                cost.exposed_bytes += (cost.transferred_bytes - before) // (1 if len(todo) == 1 else 2)
            cost.bands += times
        self.leaving = 0
        if step.statistics:
            self.gathered(step.statistics)
        for name in (step.store, step.side):
            if name:
                stored_rows[name] = step.rows

    def prepare(self, step: ConvPass) -> None:
        """The weights of a pass, and what its norms multiply by and add."""
        dtype, linear = self.dtype, step.shortcut.conv if step.shortcut else None
        for stage in step.stages:
            kept, peak = stage.shape.weight_bytes(dtype, self.resident)
            self.peak(peak)
            self.weights += kept
        for stage in step.stages:
            if stage.norm is not None:
                channels = stage.shape.in_channels
                self.peak((40 * self.statistics[stage.statistics] + 100) * channels)
                self.weights += 2 * channels * 4
        if linear is not None:
            self.weights += Linear.weight_bytes(linear.in_channels, linear.out_channels, dtype, self.resident)
            self.weights += linear.out_channels * dtype.itemsize * (linear.bias is None)

    def order(
        self, step: ConvPass, chain: Chain, source: MapSize, band: tuple[int, int], turn: int, brings: bool
    ) -> None:
        """The buffers in which a band's rows arrive from the host."""
        first, last = band
        size = self.dtype.itemsize
        if brings:
            _, high = step.stages[0].shape.input_rows(*chain.computed(first, last)[0])
            rows = min(high, source.height) - chain.source_row(first)
            self.take(f"source {turn % 2}", rows * source.width * source.channels * size)
        if step.add_to and step.add_to != step.source and self.brings:
            row = chain.output.width * chain.output.channels * size
            self.take(f"target {turn % 2}", (last - first) * row)

    def _band(self, step: ConvPass, chain: Chain, first: int, last: int, tail: int) -> _Band:
        """The stages of one band; the workspace grows as they ask for it. ``tail``: bytes that the reader holds."""
        dtype, size, linear = self.dtype, self.dtype.itemsize, step.shortcut.conv if step.shortcut else None
        ranges, rows, band = chain.computed(first, last), last - first, _Band()
        for index, stage in enumerate(step.stages):
            made, width = ranges[index][1] - ranges[index][0], chain.sizes[index].width
            shape = stage.shape
            window = nbytes(*shape.window(made, width), dtype=dtype)
            self.take(f"window {index}", window)
            if stage.norm is not None:
                self.normalise(shape.window(made, width)[0], width, shape.in_channels)
            if step.shortcut is not None and step.shortcut.tap == index:
                channels = chain.sizes[index].channels if linear is None else linear.out_channels
                band.residual = rows * width * channels * size
                if linear is not None:
                    band.multiplications += rows * width * linear.in_channels * linear.out_channels
            self._band_peak(band, tail)
            for name, elements in shape.workspace(made, width).items():
                self.take(name, elements * size)
            band.held = nbytes(made, chain.sizes[index + 1].width, shape.out_channels, dtype=dtype)
            self._band_peak(band, tail, shape.transient_bytes(made, width, dtype))
            band.multiplications += shape.multiplications(made, width)
            band.moved += 4 * window
            band.read = window if index == 0 else band.read
        return band

    def _band_peak(self, band: _Band, tail: int, transient: int = 0) -> None:
        need = band.held + band.residual + transient
        band.peak = max(band.peak, need)
        self.peak(need + tail)

    def attention_pass(self, step: AttentionPass, source: MapSize) -> None:
        dtype, size = self.dtype, self.dtype.itemsize
        height, width, channels = source.height, source.width, source.channels
        self.begin()
        self.weights = 4 * Linear.weight_bytes(channels, channels, dtype, self.resident)
        self.peak((40 * self.statistics[step.statistics_in] + 100) * channels)
        self.weights += 2 * channels * 4
        rows, key_rows = min(step.rows, height), min(step.key_rows, height)
        one_row = width * channels * size
        self.take("rows", key_rows * one_row)
        self.normalise(max(key_rows, rows), width, channels)
        block = key_rows * one_row
        if self.brings:
            self.take("source late", max(rows, key_rows) * one_row)
        if self.on_device:
            self.maps["keys and values"] = 2 * height * one_row
            self.peak()
        else:
            self.peak(2 * block if self.brings else block)
            self.store("keys and values", 2 * height * one_row)
            for turn in range(2 if key_rows < height else 1) if self.brings else ():
                for name in ("keys", "values"):
                    self.take(f"{name} {turn}", block)
            chunks = -(-height // rows)
            self.cost.transferred_bytes += (2 * chunks + 4) * height * one_row
        single = step.key_rows >= height
        for first, last in bands(height, rows):
            chunk = (last - first) * one_row
            self.take("rows", chunk)
            self.peak(
                chunk
                + attend_bytes((last - first) * width, key_rows * width, channels, single, self.device, dtype)
            )
            self.peak(2 * chunk)
            self.leaving = 0
            self.gather(step.statistics_out, last - first, source)
            self.peak(chunk)
            self.leaving = chunk * self.brings
        self.gathered(step.statistics_out)
        pixels = height * width
        self.cost.multiplications += 4 * pixels * channels * channels + 2 * pixels * pixels * channels
        blocks = -(-height // key_rows)
        if not is_fused(self.device, single):
            self.cost.moved_bytes += 6 * pixels * pixels * 4 + 6 * blocks * pixels * channels * 4
        self.cost.bands += -(-height // rows) + blocks
        self.leaving = 0
        self.maps.pop("keys and values", None)
        self.host_maps.pop("keys and values", None)


def estimate(
    passes: list[Pass],
    source: MapSize,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offload: bool,
    wrap: bool,
    resident: bool,
    base_bytes: int,
) -> Cost:
    """Cost of one picture.

    Args:
        resident: whether the weights already lie on the device in ``dtype``; else a pass copies its own.
        base_bytes: bytes alive throughout: the network's input and the finished picture, where on the device.
    """
    simulation = _Simulation(device, dtype, not offload, wrap, resident)
    simulation.maps["base"] = base_bytes
    stored_rows: dict[str, int] = {}
    last_use = {
        name: i for i, step in enumerate(passes) for name in (step.source, getattr(step, "add_to", ""))
    }
    for index, (step, size, _) in enumerate(walk(passes, source)):
        if isinstance(step, ConvPass):
            simulation.conv_pass(step, size, stored_rows)
        else:
            simulation.attention_pass(step, size)
        for name in [n for n, last in last_use.items() if last == index]:
            simulation.maps.pop(name, None)
            simulation.host_maps.pop(name, None)
            simulation.maps.pop(f"statistics of {name}", None)
    return simulation.cost
