"""Wan's VAE: that of Qwen-Image, Anima and Krea 2 as well. (Wan 2.2's: see ``wan_levels``.)

In Wan's own code (github.com/Wan-Video/Wan2.1, ``wan/modules/vae.py``) the convolutions have a third axis, time, and
look only backwards: before the first frame there are zeros. Of one picture they are 2-D convolutions by their last
temporal tap, and what doubles or halves the number of frames (``time_conv``) is not used. The norms see one pixel at a
time, so that the attention in the middle is all that is not local.

With ``WanConfig.times`` it is the network of videos: each of those convolutions sees the channels of three frames.

Parameter names are ours; `vae_lib.checkpoints.layouts` knows those of files.
The forward pass is the plain one, the reference: ``vae_lib.engine`` runs the same modules in bands, and only it those
of a video, whose reference is the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.networks.network import Network
from vae_lib.networks.parts import ChannelNorm, Downsample, MidBlock, ResnetBlock, Upsample, attend, conv3x3
from vae_lib.networks.wan_config import WanConfig
from vae_lib.networks.wan_levels import decoder_levels, encoder_levels


class PackedAttention(nn.Module):
    """Single-head self-attention over all pixels; queries, keys and values come from one 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.proj = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = attend(self.to_qkv(self.norm(x)).chunk(3, dim=1), *x.shape[2:])
        return x + cast(Tensor, self.proj(h))


def _layers(
    widths: Sequence[int],
    blocks: int,
    resize: Callable[[int, int], Downsample | Upsample],
    taps: int,
    times: Sequence[int],
) -> nn.ModuleList:
    """Residual blocks level by level, the first of ``widths`` channels, and a ``resize`` between two levels."""
    layers: list[ResnetBlock | Downsample | Upsample] = []
    channels = widths[0]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            layers.append(ResnetBlock(channels, width, ChannelNorm, taps))
            channels = width
        if level + 1 < len(widths):
            resized = resize(width, times[level])
            layers.append(resized)
            channels = resized.conv.out_channels
    return nn.ModuleList(layers)


def _doubled(channels: int, frames: int) -> Upsample:
    return Upsample(channels, channels // 2, frames)


class Encoder(nn.Module):
    """Picture in patches (B, in_channels * patch ** 2, H / patch, W / patch) -> moments (B, 2 * z_channels, h, w)."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        widths, blocks, taps, times = config.widths, config.num_res_blocks, config.taps, config.steps
        self.conv_in = conv3x3(config.in_channels * config.patch**2, widths[0], taps)
        if config.frames is None:
            self.layers = _layers(widths, blocks, Downsample, taps, times)
        else:
            self.layers = encoder_levels(widths, blocks, config.frames, taps, times)
        self.mid = MidBlock(widths[-1], ChannelNorm, PackedAttention, taps)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], 2 * config.z_channels, taps)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.conv_in(picture)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """z (B, z_channels, h, w) -> picture in patches (B, out_channels * patch ** 2, H / patch, W / patch)."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        widths, blocks, taps = config.decoder_widths[::-1], config.num_res_blocks + 1, config.taps
        times = config.steps[::-1]
        self.conv_in = conv3x3(config.z_channels, widths[0], taps)
        self.mid = MidBlock(widths[0], ChannelNorm, PackedAttention, taps)
        if config.frames is None:
            self.layers = _layers(widths, blocks, _doubled, taps, times)
        else:
            self.layers = decoder_levels(widths, blocks, config.frames[::-1], taps, times)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], config.out_channels * config.patch**2, taps)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class WanVAE(Network):
    """The VAE of Wan and Qwen-Image. No mean and no deviation of the latents is applied here.

    Built under ``torch.device("meta")`` it costs nothing, and ``assign`` then makes it use the given tensors
    themselves. ``encoder`` (with ``quant_conv``) or ``decoder`` (with ``post_quant_conv``) is None when the weights
    have none.
    """

    config: WanConfig
    encoder: Encoder | None
    decoder: Decoder | None

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        z = config.z_channels
        self.encoder = Encoder(config) if config.has_encoder else None
        self.decoder = Decoder(config) if config.has_decoder else None
        has_quant = config.has_encoder and config.use_quant_conv
        has_post_quant = config.has_decoder and config.use_post_quant_conv
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, kernel_size=1) if has_quant else None
        self.post_quant_conv = nn.Conv2d(z, z, kernel_size=1) if has_post_quant else None
        if config.times is not None:  # as all files' weights come into this network
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
