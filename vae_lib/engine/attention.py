"""Exact single-head attention without the n x n matrix: queries in chunks, keys in blocks where memory asks for it.

The softmax over several key blocks is the running one of Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_lib.device import kernels
from vae_lib.device.dtypes import at_least_float32
from vae_lib.engine.buffers import Workspace, rows_of
from vae_lib.engine.compute import Compute
from vae_lib.engine.context import Context, add_in_place
from vae_lib.engine.linear import Linear, tokens
from vae_lib.engine.maps import Arrivals, FeatureMap
from vae_lib.engine.normalization import Statistics
from vae_lib.engine.passes import AttentionPass, MapSize, Tiling

# Keys in a block of offloaded attention at least, where memory allows: the sums so far are rescaled for every block.
KEYS = 1024


def attend_fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention by PyTorch's fused kernel, which keeps no scores; each (tokens, channels)."""
    q, k, v = (x.view(1, 1, *x.shape) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).view(queries.shape)


def attend(queries: Tensor, blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmax attention of ``queries`` (q, channels) over blocks of (keys, values), each (k, channels)."""
    q = queries * queries.shape[1] ** -0.5
    wide = at_least_float32(q.dtype)
    highest = q.new_full((q.shape[0], 1), -torch.inf, dtype=wide)
    total = torch.zeros_like(highest)
    result = q.new_zeros(q.shape, dtype=wide)
    for keys, values in blocks:
        weights = torch.mm(q, keys.t()).to(wide)
        higher = torch.maximum(highest, weights.amax(1, keepdim=True))
        correction = highest.sub_(higher).exp_()
        weights.sub_(higher).exp_()
        total.mul_(correction).add_(weights.sum(1, keepdim=True))
        result.mul_(correction).add_(torch.mm(weights.to(values.dtype), values))
        highest = higher
        del weights, correction, higher  # before the next block's come
    return result.div_(total).to(queries.dtype)


def attention_rows(size: MapSize, tiling: Tiling, compute: Compute) -> tuple[int, int]:
    """Rows of queries at a time, and of keys in a block, of a map of such a size."""
    most = min(size.height, tiling.rows(size, compute.dtype))
    fused = kernels.prefers_fused_attention(compute.device, compute.dtype, size.channels)
    if fused and not tiling.offload:
        return most, size.height  # the scores are never kept
    scores = tiling.attention_bytes // 4 // size.width**2  # of rows of queries with rows of keys
    if tiling.offload:  # many queries at once, so that the keys in host memory are read few times
        key_rows = min(size.height, -(-KEYS // size.width))
        rows = max(1, min(most, scores // key_rows))
        return rows, max(1, min(most, scores // rows))
    key_rows = size.height
    if 16 * size.height > scores:
        row = size.width * size.channels * compute.dtype.itemsize
        key_rows = min(size.height, max(1, tiling.band_bytes // row))
    return max(1, min(most, scores // key_rows)), key_rows


def run_attention_pass(step: AttentionPass, context: Context) -> None:
    memory = context.memory
    source = context.maps[step.source]
    height, width, channels = source.height, source.width, source.channels
    normalise = context.normaliser(step.norm, step.statistics_in, source.offset)
    query, key, value, project = (Linear(m, memory) for m in step.projections)
    workspace = Workspace(memory)
    stored = Arrivals(source, workspace, memory.dtype, "source")

    def normalised(first: int, last: int) -> Tensor:
        """Rows as (pixels, channels)."""
        rows = workspace.band("rows", (channels, last - first, width), memory.dtype)
        for row, piece in stored.pieces(first, last):
            normalise(rows_of(rows, row - first, row - first + piece.shape[2]), piece, workspace)
        return tokens(rows)

    def as_band(pixels: Tensor) -> Tensor:
        return pixels.view(1, -1, width, channels).permute(0, 3, 1, 2)

    keys, values = (FeatureMap(height, width, channels, context.store) for _ in range(2))
    for first, last, repeats, _ in memory.bands(height, step.key_rows):
        pixels = normalised(first, last)
        context.store.retire()
        keys.append(as_band(key(pixels)), repeats)
        values.append(as_band(value(pixels)), repeats)
        del pixels  # the buffer behind it may have to grow
        context.after_band()
    context.store.retire()
    arrivals = [Arrivals(m, workspace, memory.dtype, name) for m, name in ((keys, "keys"), (values, "values"))]
    first_block = (0, min(step.key_rows, height))
    for each in arrivals:
        each.order(*first_block)

    def blocks(more: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """All keys and values, (pixels, channels) each. The next block is on its way meanwhile; ``more``: or the first
        one, for the next queries.
        """
        for first, last, _, following in memory.bands(height, step.key_rows):
            coming = following or (first_block if more and first > 0 else None)
            for each in arrivals if coming is not None else ():
                each.order(*coming)  # type: ignore[misc]
            for (_, k), (_, v) in zip(*(each.pieces(first, last) for each in arrivals), strict=True):
                yield tokens(k), tokens(v)

    fused = step.key_rows >= height and kernels.prefers_fused_attention(memory.device, memory.dtype, channels)
    statistics = Statistics()
    for first, last, repeats, following in memory.bands(height, step.rows):
        q = query(normalised(first, last))
        more = following is not None
        attended = attend_fused(q, *next(blocks(more))) if fused else attend(q, blocks(more))
        del q
        band = as_band(project(attended))
        del attended
        context.store.retire()
        add_in_place(source, stored, first, band)
        if step.statistics_out:
            statistics.add(band, workspace, repeats)
        del band
        context.after_band()
    context.store.retire()
    if step.statistics_out:
        context.statistics[step.statistics_out] = statistics
