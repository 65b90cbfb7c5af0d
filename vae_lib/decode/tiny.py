"""TAESD in tiles that are exact: no norms, so a tile with enough halo gives the whole picture's pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.decode.compute import Compute
from vae_lib.errors import Cancelled, CheckpointError
from vae_lib.networks import TAESD
from vae_lib.networks.taesd import WIDTH, Block


@dataclass(frozen=True)
class Tile:
    """One tile, in latents: what it gives (top, bottom, left, right) and what it reads."""

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


def tiles(height: int, width: int, side: int, reach: int, wrap: bool) -> Iterator[Tile]:
    """Square tiles of ``side`` latents over a picture, each reading ``reach`` more on every side."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            inner = (top, min(top + side, height), left, min(left + side, width))
            outer = (inner[0] - reach, inner[1] + reach, inner[2] - reach, inner[3] + reach)
            if not wrap:
                outer = (max(outer[0], 0), min(outer[1], height), max(outer[2], 0), min(outer[3], width))
            yield Tile(inner, outer)


def peak_bytes(height: int, width: int, side: int, reach: int, compute: Compute, latent_channels: int) -> int:
    """Peak bytes of decoding or encoding one picture of height x width latents: three maps of the largest tile."""
    areas = [
        (t.outer[1] - t.outer[0]) * (t.outer[3] - t.outer[2])
        for t in tiles(height, width, side, reach, compute.wrap)
    ]
    inputs = max(areas) * max(latent_channels, 3 * 64) * compute.dtype.itemsize
    return (
        max(areas) * 64 * WIDTH * 3 * compute.dtype.itemsize
        + 2 * inputs
        + WIDTH * WIDTH * 9 * compute.dtype.itemsize
    )


def multiplications(height: int, width: int, side: int, reach: int, wrap: bool) -> int:
    """Scalar multiplications of decoding (encoding is about the same)."""
    per_pixel = 9 * WIDTH * WIDTH
    per_latent = (9 + (1 + 9) * 4 + (1 + 9) * 16 + (1 + 3) * 64) * per_pixel
    return sum(
        (t.outer[1] - t.outer[0]) * (t.outer[3] - t.outer[2]) * per_latent
        for t in tiles(height, width, side, reach, wrap)
    )


@torch.no_grad()
def decode(
    taesd: TAESD,
    latents: Tensor,
    side: int,
    compute: Compute,
) -> Tensor:
    """Approximate pictures (B, 3, 8 h, 8 w), in [-1, 1], of *scaled* latents (B, C, h, w), by tiles of ``side``.

    Raises:
        Cancelled, CheckpointError: as `vae_lib.decode.engine.decode`.
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
        picture = _run(taesd.decoder, part.to(compute.device, compute.dtype)).mul_(2).sub_(1)
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
        latents = _run(taesd.encoder, part.to(compute.device, compute.dtype).add(1).div_(2))
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
    places = list(tiles(height, width, side, reach, compute.wrap))
    total = len(source) * len(places)
    for count in range(total):
        index, tile = count // len(places), places[count % len(places)]
        top, bottom, left, right = (edge * scale for edge in tile.outer)
        if compute.wrap:
            rows = torch.arange(top, bottom, device=source.device) % source.shape[2]
            columns = torch.arange(left, right, device=source.device) % source.shape[3]
            yield index, tile, source[index : index + 1, :, rows][..., columns]
        else:
            yield index, tile, source[index : index + 1, :, top:bottom, left:right]
        if compute.progress is not None:
            compute.progress(count + 1, total)
        if compute.cancelled is not None and count + 1 < total and compute.cancelled():
            raise Cancelled("Stopped: the picture was not finished.")


def _run(network: nn.Sequential, x: Tensor) -> Tensor:
    """The layers one by one, ReLUs in place: at most three activations of a resolution are alive."""
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            x = _conv(layer, x)
        elif isinstance(layer, nn.ReLU):
            x = x.relu_()
        elif isinstance(layer, Block):
            h = _conv(layer.conv[0], x).relu_()
            h = _conv(layer.conv[2], h).relu_()
            h = _conv(layer.conv[4], h)
            x = h.add_(x).relu_()
            del h
        elif isinstance(layer, nn.Upsample):
            x = F.interpolate(x, scale_factor=2.0)
        else:
            x = layer(x)
    return x


def _conv(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().to(x.device, x.dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(x.device, x.dtype)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)
