"""TAESD, the Tiny AutoEncoder for Stable Diffusion by Ollin Boer Bohan (github.com/madebyollin/taesd).

Parameter names are the indices of the layers in his ``.pth`` files, under ``encoder.`` and ``decoder.``. That of FLUX.2
(taef2, 32 latent channels) has a pool with a GroupNorm in each block at the latents' resolution.

TAEHV (github.com/madebyollin/taehv) is his TAESD of video models. Of one frame of latents its decoder makes four, and
the last is the picture; each block sees the frame before, too. That is a network of pictures: one frame, before which
are zeros, up to the layer that makes two of it, and from there on the two side by side, as twice the channels.
Only this decoder is here; ``vae_lib.checkpoints.taehv`` makes its weights of the file's.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.errors import CheckpointError

WIDTH = 64
POOLED_CHANNELS = 32  # of the latents whose TAESD has pools
POOL_WIDTH, POOL_GROUPS = 4 * WIDTH, 4
VIDEO_WIDTHS = 256, 128


def _conv(in_channels: int, out_channels: int, stride: int = 1, bias: bool = True, frames: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=frames, bias=bias)


class Clamp(nn.Module):
    """Soft clamp of the latents to (-3, 3), where those of Stable Diffusion lie."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convs plus the input, then ReLU; a ``pool``, if there is one, is added to the input first.

    The channels may be those of two ``frames``, of which the later sees the earlier in the first conv. Where fewer come
    ``out``, they are those of the later frame.
    """

    def __init__(self, channels: int, pooled: bool = False, out: int | None = None, frames: int = 1) -> None:
        super().__init__()
        width = channels if out is None else out
        self.conv = nn.Sequential(
            _conv(channels, width),
            nn.ReLU(),
            _conv(width, width, frames=frames),
            nn.ReLU(),
            _conv(width, width, frames=frames),
        )
        self.fuse = nn.ReLU()
        self.pool: nn.Sequential | None = None
        if pooled:
            self.pool = nn.Sequential(
                nn.Conv2d(channels, POOL_WIDTH, kernel_size=1, bias=False),
                nn.GroupNorm(POOL_GROUPS, POOL_WIDTH),
                nn.ReLU(),
                nn.Conv2d(POOL_WIDTH, channels, kernel_size=1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        h = self.conv(x)
        return cast(Tensor, self.fuse(h + x[:, -h.shape[1] :]))


def _encoder(latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, WIDTH), Block(WIDTH)]
    for last in (False, False, True):
        pooled = last and latent_channels == POOLED_CHANNELS
        layers += [_conv(WIDTH, WIDTH, stride=2, bias=False), *(Block(WIDTH, pooled) for _ in range(3))]
    return nn.Sequential(*layers, _conv(WIDTH, latent_channels))


def _decoder(latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [Clamp(), _conv(latent_channels, WIDTH), nn.ReLU()]
    for first in (True, False, False):
        pooled = first and latent_channels == POOLED_CHANNELS
        layers += [Block(WIDTH, pooled) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False)]
    return nn.Sequential(*layers, Block(WIDTH), _conv(WIDTH, 3))


def _video_decoder(latent_channels: int) -> nn.Sequential:
    """TAEHV's, of the last of the four frames; the 1x1 convs come before the upsampling and not behind it, which is the
    same in a quarter of the work."""
    high, middle = VIDEO_WIDTHS
    return nn.Sequential(
        *(Clamp(), _conv(latent_channels, high), nn.ReLU()),
        *(Block(high) for _ in range(3)),
        *_enlarged(high, high, middle),
        *(Block(middle) for _ in range(3)),
        *_enlarged(middle, 2 * middle, 2 * WIDTH, frames=2),
        *(Block(2 * WIDTH, frames=2), Block(2 * WIDTH, frames=2), Block(2 * WIDTH, out=WIDTH)),
        *_enlarged(WIDTH, WIDTH, WIDTH),
        *(nn.ReLU(), _conv(WIDTH, 3)),
    )


def _enlarged(channels: int, grown: int, out: int, frames: int = 1) -> tuple[nn.Module, ...]:
    grow = nn.Conv2d(channels, grown, kernel_size=1, bias=False)
    return grow, nn.Upsample(scale_factor=2), _conv(grown, out, bias=False, frames=frames)


class TAESD(nn.Module):
    """Encoder and decoder (either may be None) between images and *scaled* latents, 8 x 8 pixels to one.

    The latents are the sampler's own: no scaling and no shift factor is to be applied before or after. ``video``: it is
    TAEHV's decoder, and there is no encoder.
    """

    downscale = 8

    def __init__(self, latent_channels: int, encoder: bool = True, decoder: bool = True, video: bool = False) -> None:
        super().__init__()
        self.latent_channels, self.video = latent_channels, video
        self.encoder = _encoder(latent_channels) if encoder and not video else None
        made = _video_decoder if video else _decoder
        self.decoder = made(latent_channels) if decoder else None

    def encode(self, image: Tensor) -> Tensor:
        """Scaled latents (B, latent_channels, H / 8, W / 8) of an image (B, 3, H, W) in [-1, 1].

        Raises:
            CheckpointError: when the weights hold no encoder.
        """
        first, last = self.encoder_parts
        return cast(Tensor, last(first((image + 1) / 2)))

    def decode(self, latents: Tensor) -> Tensor:
        """The image (B, 3, 8 h, 8 w), in [-1, 1] not clamped, of scaled latents (B, latent_channels, h, w).

        Raises:
            CheckpointError: when the weights hold no decoder.
        """
        first, last = self.decoder_parts
        return cast(Tensor, last(first(latents))) * 2 - 1

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction of an image: ``decode(encode(image))``."""
        return self.decode(self.encode(image))

    def unpacked(self, latents: Tensor) -> Tensor:
        """Latents (B, 32, 2 h, 2 w) of those that FLUX.2's sampler packs, (B, 128, h, w); any others as they are."""
        is_packed = latents.ndim == 4 and latents.shape[1] == 4 * self.latent_channels == 4 * POOLED_CHANNELS
        return F.pixel_shuffle(latents, 2) if is_packed else latents

    @property
    def decoder_parts(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The decoder in two: layers up to the last pool, which must see the whole picture, and the others.

        Raises:
            CheckpointError: when the weights hold no decoder.
        """
        layers = _held(self.decoder, "only an encoder, so it cannot decode; add its decoder")
        return _divided(layers, 1 + max(_pools(layers), default=-1))

    @property
    def encoder_parts(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The encoder in two: the layers before the first pool, and those from it on, which must see the whole picture.

        Raises:
            CheckpointError: when the weights hold no encoder.
        """
        layers = _held(self.encoder, "only a decoder, so it cannot encode; add its encoder")
        return _divided(layers, min(_pools(layers), default=len(layers)))

    @property
    def decoder_reach(self) -> int:
        """Latent rows (or columns) beyond a tile, on each side, that can influence its pixels."""
        return 0 if self.decoder is None else _reach(self.decoder_parts[1])

    @property
    def encoder_reach(self) -> int:
        """Pixel rows (or columns) beyond a tile, on each side, that can influence its latents.

        The tile's edges are multiples of 8 pixels.
        """
        return 0 if self.encoder is None else _reach(self.encoder_parts[0])


def _held(half: nn.Sequential | None, otherwise: str) -> nn.Sequential:
    if half is None:
        raise CheckpointError(f"This TAESD file holds {otherwise}.")
    return half


def _pools(network: nn.Sequential) -> list[int]:
    """The layers that have one."""
    return [at for at, layer in enumerate(network) if isinstance(layer, Block) and layer.pool is not None]


def _divided(network: nn.Sequential, at: int) -> tuple[nn.Sequential, nn.Sequential]:
    layers = list(network.children())
    return nn.Sequential(*layers[:at]), nn.Sequential(*layers[at:])


def _reach(network: nn.Module) -> int:
    """Rows of input beyond a tile that can reach the tile's output, found by walking the layers backwards.

    A tile's edges are assumed to lie on whole input (decoder) or output (encoder) pixels at every resolution.
    """
    reach = 0
    for layer in reversed(list(network.modules())):  # in order of execution: residual paths reach no further
        if isinstance(layer, nn.Conv2d):
            # output row o reads from stride * o - padding on; past the tile's last row it reads no further
            reach = reach * layer.stride[0] + layer.kernel_size[0] // 2
        elif isinstance(layer, nn.Upsample):
            reach = -(-reach // 2)
    return reach
