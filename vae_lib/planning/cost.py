"""What a piece of work will cost: the engine's own passes, run on arrays that are only counted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vae_lib.engine import batch as engine
from vae_lib.engine.buffers import Band
from vae_lib.engine.compute import Compute
from vae_lib.engine.programs.autoencoder_kl import Tiling
from vae_lib.networks import AutoencoderKL
from vae_lib.planning.counted import Shape4
from vae_lib.planning.counted_memory import CountedArrays


@dataclass(frozen=True)
class Cost:
    """Cost of decoding or encoding a batch.

    Attributes:
        peak_bytes: what must be free on the device for the most bytes alive at once; the weights themselves are not
            counted, the copies that a pass prepares of them are.
        multiplications: scalar multiplications of convolutions, matrix products and attention.
        moved_bytes: bytes of activations read and written by everything else.
        transferred_bytes: bytes copied between host and device.
        exposed_bytes: those of them that nothing is computed beside: what a pass reads first and writes last.
        host_bytes: most bytes of activations that rest off the device at once.
        largest_bytes: of the largest array on the device.
        bands: bands processed.
        dispatches: operations that PyTorch is asked for.
    """

    peak_bytes: int = 0
    multiplications: int = 0
    moved_bytes: int = 0
    transferred_bytes: int = 0
    exposed_bytes: int = 0
    host_bytes: int = 0
    largest_bytes: int = 0
    bands: int = 0
    dispatches: int = 0


# Rows from the edge of a picture within which a band may read other rows than one further in.
BORDER = 4


def _sampled(todo: list[tuple[int, int]], rows: int, height: int, period: int) -> Iterator[tuple[int, int]]:
    """(band, how many from it on are counted by it): of those alike, a few at both ends one by one.

    What is kept grows and what is freed shrinks steadily, but for steps that repeat after ``period`` bands, so the most
    is alive near one of the ends. Those between are counted by one for each step of the period: in as many stretches,
    each one more than a multiple of it long.
    """
    inner = range(-(-BORDER // rows), (height - BORDER) // rows)
    between = inner[period - 1 : -period]
    stretch = (len(between) // period - 1) // period * period + 1
    index = 0
    while index < len(todo):
        alike = stretch > 1 and between and between[0] <= index < between[0] + period * stretch
        times = stretch if alike else 1
        yield index, times
        index += times


class CountedMemory(CountedArrays):
    """The twin of `Memory`: arrays without values, and of bands that are alike one."""

    def bands(self, height: int, rows: int, period: int = 1) -> Iterator[Band]:
        todo = [(first, min(first + rows, height)) for first in range(0, height, rows)]
        for index, repeats in _sampled(todo, rows, height, period):
            following = todo[index + repeats] if index + repeats < len(todo) else None
            before = self.meter.transferred
            with self.repeated(repeats):
                yield Band(*todo[index], repeats, following)
            if index == 0 or following is None:
                share = 1 if len(todo) == 1 else 2
                self.exposed += (self.meter.transferred - before) // share

    def cost(self, bands: int) -> Cost:
        """Of all that was counted."""
        meter = self.meter
        return Cost(
            peak_bytes=meter.needed,
            multiplications=meter.multiplications,
            moved_bytes=meter.moved,
            transferred_bytes=meter.transferred,
            exposed_bytes=self.exposed,
            host_bytes=meter.host_peak,
            largest_bytes=meter.largest,
            bands=bands,
            dispatches=meter.dispatches,
        )


@contextmanager
def _without_collections() -> Iterator[None]:
    """Arrays go when nothing holds them; looking for circles among so many would take longer than the counting."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def estimate(
    vae: AutoencoderKL, shape: Shape4, tiling: Tiling, compute: Compute, *, resident: bool, decodes: bool
) -> Cost:
    """Cost of decoding latents, or encoding pictures, of ``shape`` (batch, channels, height, width).

    Args:
        vae: the network, which may be without weights.
        resident: whether its weights lie on the device in the dtype already; else a pass copies its own.
    """
    memory, bands = CountedMemory(compute.device, compute.dtype, resident), 0

    def count(done: int, total: int) -> None:
        nonlocal bands
        bands = total

    work = engine.decode if decodes else engine.encode_moments
    with _without_collections():
        work(vae, memory.given(*shape), tiling, replace(compute, progress=count), memory)
    return memory.cost(bands)


def estimate_plain(vae: AutoencoderKL, shape: Shape4, compute: Compute, *, decodes: bool) -> Cost:
    """The same of the plain network, its weights on the device, one picture after the other."""
    memory = CountedMemory(compute.device, compute.dtype, True)
    memory.meter.channels_last = False
    batch, channels, height, width = shape
    for _ in memory.each(range(batch), lambda index: None, {}):
        work: Any = vae.decode if decodes else vae.encode_moments
        work(memory.given(1, channels, height, width))
    return memory.cost(batch)
