"""TAESD in tiles that are exact: no norms, so a tile with enough halo gives the whole picture's pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.device import kernels
from vae_lib.engine.compute import Compute
from vae_lib.engine.padding import ZEROS, Edge, Padding
from vae_lib.errors import Cancelled, CheckpointError
from vae_lib.networks import TAESD
from vae_lib.networks.taesd import WIDTH, Block


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


def peak_bytes(grid: Grid, dtype: torch.dtype, latent_channels: int) -> int:
    """Peak bytes of decoding or encoding one picture: three maps of the largest tile, and one that is padded."""
    inputs = math.prod(grid.largest) * max(latent_channels, 3 * 64) * dtype.itemsize
    maps = 3 * map_bytes(grid, dtype)
    if _reflects(grid.padding):
        maps += map_bytes(grid, dtype, margin=1)
    return maps + 2 * inputs + WIDTH * WIDTH * 9 * dtype.itemsize


def multiplications(grid: Grid) -> int:
    """Scalar multiplications of decoding (encoding is about the same)."""
    per_pixel = 9 * WIDTH * WIDTH
    per_latent = (9 + (1 + 9) * 4 + (1 + 9) * 16 + (1 + 3) * 64) * per_pixel
    return grid.area * per_latent


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
    if taesd.decoder is None:
        raise CheckpointError("This TAESD file holds only an encoder, so it cannot decode; add its decoder.")
    scale = taesd.downscale
    out = torch.empty(
        len(latents),
        3,
        latents.shape[2] * scale,
        latents.shape[3] * scale,
        dtype=compute.dtype,
        device=compute.destination,
    )
    for index, tile, part in _tiled(latents, side, taesd.decoder_reach, 1, compute):
        picture = _run(taesd.decoder, part.to(compute.device, compute.dtype), compute.padding).mul_(2).sub_(1)
        top, bottom, left, right = (edge * scale for edge in tile.inner)
        y, x = (tile.inner[0] - tile.outer[0]) * scale, (tile.inner[2] - tile.outer[2]) * scale
        out[index, :, top:bottom, left:right] = picture[0, :, y : y + bottom - top, x : x + right - left]
        del picture, part
    return out


@torch.no_grad()
def encode(
    taesd: TAESD,
    images: Tensor,
    side: int,
    compute: Compute,
) -> Tensor:
    """Scaled latents (B, C, H / 8, W / 8) of pictures (B, 3, H, W) in [-1, 1], in tiles of ``side`` latents."""
    if taesd.encoder is None:
        raise CheckpointError("This TAESD file holds only a decoder, so it cannot encode; add its encoder.")
    scale = taesd.downscale
    height, width = images.shape[2] // scale, images.shape[3] // scale
    out = torch.empty(
        len(images), taesd.latent_channels, height, width, dtype=compute.dtype, device=compute.destination
    )
    images = images[:, :, : height * scale, : width * scale]
    reach = -(-taesd.encoder_reach // scale)
    for index, tile, part in _tiled(images, side, reach, scale, compute):
        latents = _run(taesd.encoder, part.to(compute.device, compute.dtype).add(1).div_(2), compute.padding)
        top, bottom, left, right = tile.inner
        y, x = top - tile.outer[0], left - tile.outer[2]
        out[index, :, top:bottom, left:right] = latents[0, :, y : y + bottom - top, x : x + right - left]
        del latents, part
    return out


def _tiled(
    source: Tensor,
    side: int,
    reach: int,
    scale: int,
    compute: Compute,
) -> Iterator[tuple[int, Tile, Tensor]]:
    """(picture, tile, its part of ``source``); ``scale`` is how many source pixels lie along a latent."""
    height, width = source.shape[2] // scale, source.shape[3] // scale
    places = list(Grid(height, width, side, reach, compute.padding))
    total = len(source) * len(places)
    for count in range(total):
        index, tile = count // len(places), places[count % len(places)]
        top, bottom, left, right = (edge * scale for edge in tile.outer)
        yield index, tile, _around(_around(source[index : index + 1], 2, top, bottom), 3, left, right)
        if compute.progress is not None:
            compute.progress(count + 1, total)
        if compute.cancelled is not None and count + 1 < total and compute.cancelled():
            raise Cancelled("Stopped: the picture was not finished.")


def _around(source: Tensor, axis: int, first: int, last: int) -> Tensor:
    """Rows (or columns) ``first`` to ``last - 1``; those beyond an edge are at the other end."""
    size = source.shape[axis]
    if first >= 0 and last <= size:
        return source.narrow(axis, first, last - first)
    return source.index_select(axis, torch.arange(first, last, device=source.device) % size)


def _run(network: nn.Sequential, x: Tensor, padding: Padding) -> Tensor:
    """The layers one by one, ReLUs in place: at most three activations of a resolution are alive, and a padded one."""
    if kernels.convolution_copies(x.device, x.dtype, channels_last=False):
        x = x.contiguous(memory_format=torch.channels_last)
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            x = _conv(layer, x, padding)
        elif isinstance(layer, nn.ReLU):
            x = x.relu_()
        elif isinstance(layer, Block):
            h = _conv(layer.conv[0], x, padding).relu_()
            h = _conv(layer.conv[2], h, padding).relu_()
            h = _conv(layer.conv[4], h, padding)
            x = h.add_(x).relu_()
            del h
        elif isinstance(layer, nn.Upsample):
            x = F.interpolate(x, scale_factor=2.0)
        else:
            x = layer(x)
    return x


def _conv(layer: nn.Module, x: Tensor, padding: Padding) -> Tensor:
    """Padded with zeros, or reflected where the tile ends with the picture. (Elsewhere its outermost rows are not used,
    and a tile that goes on at the other edge has none of its own.)
    """
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().to(x.device, x.dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(x.device, x.dtype)
    pads = (1, 1)
    if _reflects(padding):
        rows, columns = (int(edge is Edge.REFLECT) for edge in (padding.height, padding.width))
        x, pads = F.pad(x, (columns, columns, rows, rows), mode="reflect"), (1 - rows, 1 - columns)
    return F.conv2d(x, weight, bias, layer.stride, pads)
