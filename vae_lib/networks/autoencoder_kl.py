"""The KL autoencoder of latent diffusion (Rombach et al., 2022), as Stable Diffusion checkpoints carry it.

Parameter names are those of the original checkpoints ("ldm layout"): a state dict loads without renaming.
The forward pass is the plain one, the reference: ``vae_lib.engine`` runs the same modules in bands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.networks.config import AutoencoderKLConfig
from vae_lib.networks.network import Network
from vae_lib.networks.parts import Downsample, MidBlock, ResnetBlock, Upsample, attend, conv3x3

MakeNorm = Callable[[int], nn.GroupNorm]  # of so many channels


def _norm(groups: int) -> MakeNorm:
    return functools.partial(nn.GroupNorm, groups, eps=1e-6)


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels; the head is as wide as the layer."""

    def __init__(self, channels: int, norm: MakeNorm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        h = attend((project(normed) for project in (self.q, self.k, self.v)), *x.shape[2:])
        return x + cast(Tensor, self.proj_out(h))


def _blocks(in_channels: int, out_channels: int, count: int, norm: MakeNorm) -> nn.ModuleList:
    inputs = (in_channels, *[out_channels] * (count - 1))
    return nn.ModuleList(ResnetBlock(channels, out_channels, norm) for channels in inputs)


def _middle(channels: int, norm: MakeNorm) -> MidBlock[AttnBlock]:
    return MidBlock(channels, norm, functools.partial(AttnBlock, norm=norm))


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, then ``downsample`` (None in the last level)."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, norm: MakeNorm, downsample: bool) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, num_blocks, norm)
        self.downsample = Downsample(out_channels) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, then ``upsample`` (None in level 0, the last)."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, norm: MakeNorm, upsample: bool) -> None:
        super().__init__()
        self.block = _blocks(in_channels, out_channels, num_blocks, norm)
        self.upsample = Upsample(out_channels, out_channels) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Image (B, in_channels, H, W) -> moments (B, 2 * z_channels, H / downscale, W / downscale)."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, norm = config.widths, _norm(config.norm_groups)
        last = len(widths) - 1
        self.conv_in = conv3x3(config.in_channels, config.ch)
        self.down = nn.ModuleList(
            DownLevel(widths[i - 1] if i else config.ch, width, config.num_res_blocks, norm, downsample=i != last)
            for i, width in enumerate(widths)
        )
        self.mid = _middle(widths[-1], norm)
        self.norm_out = norm(widths[-1])
        self.conv_out = conv3x3(widths[-1], config.z_channels * (2 if config.double_z else 1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class Decoder(nn.Module):
    """z (B, z_channels, h, w) -> image (B, out_channels, h * downscale, w * downscale).

    ``up`` is indexed as in the checkpoints, level 0 being the image's resolution: it runs from last to first.
    """

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, norm = config.decoder_widths, _norm(config.norm_groups)
        last = len(widths) - 1
        self.conv_in = conv3x3(config.z_channels, widths[-1])
        self.mid = _middle(widths[-1], norm)
        self.up = nn.ModuleList(
            UpLevel(widths[min(i + 1, last)], width, config.num_res_blocks + 1, norm, upsample=i != 0)
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = conv3x3(widths[0], config.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class AutoencoderKL(Network):
    """The VAE of Stable Diffusion 1, 2, XL, 3 and FLUX.1. No scaling and no shift factor is applied here.

    Built under ``torch.device("meta")`` it costs nothing, and ``assign`` then makes
    it use the given tensors or Parameters themselves. ``encoder`` or ``decoder`` is None when the
    weights have none; ``quant_conv`` and ``post_quant_conv`` are None in VAEs without them (SD3, FLUX.1).
    """

    config: AutoencoderKLConfig
    encoder: Encoder | None
    decoder: Decoder | None

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        z, embed = config.z_channels, config.embed_dim
        self.encoder = Encoder(config) if config.has_encoder else None
        self.decoder = Decoder(config) if config.has_decoder else None
        self.quant_conv = nn.Conv2d(2 * z, 2 * embed, kernel_size=1) if config.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(embed, z, kernel_size=1) if config.use_post_quant_conv else None

    def encode(self, image: Tensor) -> Tensor:
        """The mean latents (B, latent_channels, h, w), not scaled, of an image (B, 3, H, W) in [-1, 1].

        Raises:
            CheckpointError: when the weights hold no encoder.
        """
        return self.encode_moments(image)[0]

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction of an image: ``decode(encode(image))``."""
        return self.decode(self.encode(image))
