"""TAESD in tiles that are exact: no norms, so a tile with enough halo gives the whole picture's pixels.

That of FLUX.2 has norms at the latents' resolution: these layers run on the whole picture, which is small there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.device import kernels
from vae_lib.engine.compute import Compute
from vae_lib.engine.padding import ZEROS, Edge, Padding
from vae_lib.errors import Cancelled
from vae_lib.networks import TAESD
from vae_lib.networks.taesd import POOL_GROUPS, POOL_WIDTH, POOLED_CHANNELS, VIDEO_WIDTHS, WIDTH, Block


@dataclass(frozen=True)
class Tile:
    """One tile, in latents: what it gives (top, bottom, left, right) and what it reads."""

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """Square tiles of ``side`` latents over a picture of ``height`` x ``width``, each reading ``reach`` more around it.

    Raises:
        InputError: when there is nothing to reflect.
    """

    height: int
    width: int
    side: int
    reach: int
    padding: Padding = ZEROS

    def __post_init__(self) -> None:
        for edge, size in ((self.padding.height, self.height), (self.padding.width, self.width)):
            edge.stand_ins(size, "same")  # raises where there is nothing to reflect

    def __iter__(self) -> Iterator[Tile]:
        columns = list(self._spans(self.width, self.padding.width))
        for inner, outer in self._spans(self.height, self.padding.height):
            yield from (Tile(inner + across, outer + around) for across, around in columns)

    def _spans(self, size: int, edge: Edge) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """First and last of what each tile gives and reads along an axis: up to the picture's end, where the layers'
        own padding begins, or on at its other edge."""
        for start in range(0, size, self.side):
            end = min(start + self.side, size)
            first, last = start - self.reach, end + self.reach
            circles = edge is Edge.CIRCULAR
            yield (start, end), (first, last) if circles else (max(first, 0), min(last, size))

    @property
    def area(self) -> int:
        """Latents that all tiles together read."""
        return math.prod(map(sum, self._sides))

    @property
    def largest(self) -> tuple[int, int]:
        """Rows and columns of latents that the largest tile reads."""
        rows, columns = map(max, self._sides)
        return rows, columns

    @property
    def _sides(self) -> tuple[list[int], list[int]]:
        """Rows that each tile of a column reads, and columns that each of a row reads."""
        axes = (self.height, self.padding.height), (self.width, self.padding.width)
        rows, columns = ([last - first for _, (first, last) in self._spans(*axis)] for axis in axes)
        return rows, columns


def map_bytes(grid: Grid, dtype: torch.dtype, margin: int = 0) -> int:
    """Of an activation of the largest tile at the picture's resolution, with so many pixels more around it."""
    rows, columns = (8 * side + 2 * margin for side in grid.largest)
    return rows * columns * WIDTH * dtype.itemsize


def peak_bytes(grid: Grid, dtype: torch.dtype, taesd: TAESD) -> int:
    """Peak bytes of decoding or encoding one picture: three maps of the largest tile, and one that is padded.

    A video's decoder has no block at the picture's resolution, so two; of a tiny picture, the weights of its widest
    layers are more. Layers with pools have theirs of the whole picture before the first tile, and what they make beside
    the tiles.
    """
    inputs = math.prod(grid.largest) * max(taesd.latent_channels, 3 * 64) * dtype.itemsize
    maps = (2 if taesd.video else 3) * map_bytes(grid, dtype)
    if _reflects(grid.padding):
        maps += map_bytes(grid, dtype, margin=1)
    tiles = maps + 2 * inputs + WIDTH * WIDTH * 9 * dtype.itemsize
    if taesd.video:
        width = VIDEO_WIDTHS[0]
        return max(tiles, width * (9 * width + 8 * math.prod(grid.largest)) * dtype.itemsize)
    if taesd.latent_channels != POOLED_CHANNELS:
        return tiles
    latents = grid.height * grid.width * dtype.itemsize
    return max(tiles + WIDTH * latents, (2 * POOL_WIDTH + 3 * WIDTH) * latents)


def multiplications(taesd: TAESD) -> int:
    """Scalar multiplications of decoding one latent (encoding is about the same)."""
    assert taesd.decoder is not None
    per_latent, pixels = 0, 1
    for layer in taesd.decoder.modules():
        if isinstance(layer, nn.Upsample):
            pixels *= 4
        elif isinstance(layer, nn.Conv2d):
            per_latent += layer.weight.numel() * pixels
    return per_latent


def _reflects(padding: Padding) -> bool:
    return Edge.REFLECT in (padding.height, padding.width)


@torch.no_grad()
def decode(
    taesd: TAESD,
    latents: Tensor,
    side: int,
    compute: Compute,
) -> Tensor:
    """Approximate pictures (B, 3, 8 h, 8 w), in [-1, 1], of *scaled* latents (B, C, h, w), by tiles of ``side``.

    Raises:
        Cancelled, CheckpointError: as `vae_lib.engine.batch.decode`.
    """
    whole, tiled = taesd.decoder_parts
    batch, _, height, width = latents.shape
    out = _empty(compute, batch, 3, height * taesd.downscale, width * taesd.downscale)
    steps = _Steps(compute, batch, Grid(height, width, side, taesd.decoder_reach, compute.padding))
    for source, picture in zip(latents[:, None], out[:, None], strict=True):
        if len(whole):
            source = _run(whole, source.to(compute.device, compute.dtype), compute.padding, whole=True)
        steps.run(source, 1, picture, taesd.downscale, lambda x: _run(tiled, x, compute.padding).mul_(2).sub_(1))
    return out


@torch.no_grad()
def encode(
    taesd: TAESD,
    images: Tensor,
    side: int,
    compute: Compute,
) -> Tensor:
    """Scaled latents (B, C, H / 8, W / 8) of pictures (B, 3, H, W) in [-1, 1], in tiles of ``side`` latents."""
    tiled, whole = taesd.encoder_parts
    batch, height, width = len(images), *(side // taesd.downscale for side in images.shape[2:])
    images = images[:, :, : height * taesd.downscale, : width * taesd.downscale]
    reach = -(-taesd.encoder_reach // taesd.downscale)
    out = _empty(compute, batch, taesd.latent_channels, height, width)
    steps = _Steps(compute, batch, Grid(height, width, side, reach, compute.padding))
    for source, latents in zip(images[:, None], out[:, None], strict=True):
        target = latents
        if len(whole):
            target = torch.empty(1, WIDTH, height, width, dtype=compute.dtype, device=compute.device)
        steps.run(source, taesd.downscale, target, 1, lambda x: _run(tiled, x.add(1).div_(2), compute.padding))
        if len(whole):
            latents.copy_(_run(whole, target, compute.padding, whole=True))
    return out


def _empty(compute: Compute, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=compute.dtype, device=compute.destination)


class _Steps:
    """The tiles of a batch of pictures, one by one."""

    def __init__(self, compute: Compute, batch: int, grid: Grid) -> None:
        self._compute, self._grid = compute, grid
        self._done, self._total = 0, batch * sum(1 for _ in grid)

    def run(self, source: Tensor, read: int, target: Tensor, made: int, network: Callable[[Tensor], Tensor]) -> None:
        """Fill ``target``, with ``made`` of its pixels along a latent, from ``source``, with ``read`` of them.

        Raises:
            Cancelled: between two tiles.
        """
        compute = self._compute
        for tile in self._grid:
            if compute.cancelled is not None and self._done and compute.cancelled():
                raise Cancelled("Stopped: the picture was not finished.")
            top, bottom, left, right = (edge * read for edge in tile.outer)
            part = _around(_around(source, 2, top, bottom), 3, left, right)
            result = network(part.to(compute.device, compute.dtype))
            top, bottom, left, right = (edge * made for edge in tile.inner)
            y, x = (tile.inner[0] - tile.outer[0]) * made, (tile.inner[2] - tile.outer[2]) * made
            target[:, :, top:bottom, left:right] = result[:, :, y : y + bottom - top, x : x + right - left]
            del result, part
            self._done += 1
            if compute.progress is not None:
                compute.progress(self._done, self._total)


def _around(source: Tensor, axis: int, first: int, last: int) -> Tensor:
    """Rows (or columns) ``first`` to ``last - 1``; those beyond an edge are at the other end."""
    size = source.shape[axis]
    if first >= 0 and last <= size:
        return source.narrow(axis, first, last - first)
    return source.index_select(axis, torch.arange(first, last, device=source.device) % size)


def _run(network: nn.Sequential, x: Tensor, padding: Padding, whole: bool = False) -> Tensor:
    """The layers one by one, ReLUs in place: at most three activations of a resolution are alive, and a padded one.

    Args:
        whole: ``x`` is a whole picture, and no tile of one.
    """
    if kernels.convolution_copies(x.device, x.dtype, channels_last=False):
        x = x.contiguous(memory_format=torch.channels_last)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            x = _conv(layer, x, padding, whole)
        elif isinstance(layer, nn.ReLU):
            x = x.relu_()
        elif isinstance(layer, Block):
            x = x if layer.pool is None else _pooled(layer.pool, x)
            h = _conv(layer.conv[0], x, padding, whole).relu_()
            h = _conv(layer.conv[2], h, padding, whole).relu_()
            h = _conv(layer.conv[4], h, padding, whole)
            x = h.add_(x[:, -h.shape[1] :]).relu_()
            del h
        elif isinstance(layer, nn.Upsample):
            x = F.interpolate(x, scale_factor=2.0)
        else:
            x = layer(x)
    return x


def _pooled(pool: nn.Sequential, x: Tensor) -> Tensor:
    widen, norm, _, narrow = pool
    h = F.conv2d(x, *_parameters(widen, x))
    h = F.group_norm(h, POOL_GROUPS, *_parameters(norm, x)).relu_()
    return F.conv2d(h, *_parameters(narrow, x)).add_(x)


def _parameters(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias where ``x`` is, in its dtype."""
    weight: Tensor = layer.weight.detach().to(x.device, x.dtype)
    return weight, None if layer.bias is None else layer.bias.detach().to(x.device, x.dtype)


def _conv(layer: nn.Module, x: Tensor, padding: Padding, whole: bool) -> Tensor:
    """Padded with zeros, or reflected where the tile ends with the picture. (Elsewhere its outermost rows are not used,
    and a tile that goes on at the other edge has none of its own.)
    """
    assert isinstance(layer, nn.Conv2d)
    pads = [layer.kernel_size[0] // 2] * 2
    for axis, edge in enumerate((padding.height, padding.width)):
        if pads[axis] and (edge is Edge.REFLECT or (whole and edge is Edge.CIRCULAR)):
            x = F.pad(x, (0, 0, 1, 1) if axis == 0 else (1, 1, 0, 0), mode=edge.value)
            pads[axis] = 0
    weight, bias = _parameters(layer, x)
    return F.conv2d(x, weight, bias, layer.stride, pads, groups=layer.groups)
