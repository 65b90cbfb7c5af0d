"""What Wan 2.2's VAE has more than Wan 2.1's: levels with a shortcut around them, and pictures in patches.

Published in github.com/Wan-Video/Wan2.2 (``wan/modules/vae2_2.py``: ``AvgDown3D``, ``DupUp3D``, ``patchify``). The
shortcuts have no weights. Where a level also changes the number of frames, of one picture (and of the first frame of a
video) the shortcut sees the last frame of those that it would make, or zeros for the frames before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.errors import CheckpointError
from vae_lib.networks.parts import ChannelNorm, Downsample, ResnetBlock, Upsample

Layers = list[ResnetBlock | Downsample | Upsample]


class Averaged(nn.Module):
    """Around a level of the encoder: each 2x2 pixels averaged, to one channel in each ``frames``; the others get zeros.

    (B, C, H, W) -> (B, C * frames, H / 2, W / 2).
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def channels(self, frame: int) -> slice:
        """Those of the result to which that one of the ``frames`` goes; those before the first one are zeros."""
        return slice(frame, None, self.frames)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 2)
        batch, channels, height, width = pooled.shape
        out = pooled.new_zeros(batch, channels * self.frames, height, width)
        out[:, self.channels(-1 % self.frames)].copy_(pooled)
        return out


class Repeated(nn.Module):
    """Around a level of the decoder: each pixel to 2x2, each of which takes its own part of the channels.

    (B, C, h, w) -> (B, out_channels, 2 h, 2 w). In Wan's code the channels are repeated to ``out_channels * frames`` of
    2x2 pixels, of which the last frame is the picture.
    """

    def __init__(self, in_channels: int, out_channels: int, frames: int) -> None:
        super().__init__()
        self.step = in_channels // out_channels
        self.out_channels, self.frames = out_channels, frames

    def corners(self, frame: int) -> list[tuple[int, int, slice]]:
        """(row, column, channels that it takes) of each of the 2x2 pixels of that one of the ``frames``."""
        firsts = [(4 * frame + at) * self.step // (4 * self.frames) for at in range(4)]
        return [(at // 2, at % 2, slice(first, None, self.step)) for at, first in enumerate(firsts)]

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        out = x.new_empty(batch, self.out_channels, 2 * height, 2 * width)
        for row, column, channels in self.corners(self.frames - 1):
            out[:, :, row::2, column::2].copy_(x[:, channels])
        return out


class Level(nn.Module):
    """Residual blocks and what halves or doubles their result, with a ``shortcut`` around all of them.

    Attributes:
        shortcut: None where there is none; an ``nn.Identity`` where the input itself is added.
    """

    def __init__(self, layers: Layers, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.layers:
            h = layer(h)
        return h if self.shortcut is None else cast(Tensor, h + self.shortcut(x))


def encoder_levels(
    widths: Sequence[int], blocks: int, frames: Sequence[int], taps: int, times: Sequence[int]
) -> nn.ModuleList:
    """Levels of ``widths``, from the picture downwards; the halving behind level ``i`` makes one of ``frames[i]``.

    ``taps``, ``times``: as in ``WanConfig``.
    """
    levels, channels = [], widths[0]
    for level, width in enumerate(widths):
        layers, is_last = _blocks(channels, width, blocks, taps), level + 1 == len(widths)
        if width != (channels if is_last else channels * frames[level]):
            raise _unknown(channels, width)
        if not is_last:
            layers.append(Downsample(width, times[level]))
        levels.append(Level(layers, nn.Identity() if is_last else Averaged(frames[level])))
        channels = width
    return nn.ModuleList(levels)


def decoder_levels(
    widths: Sequence[int], blocks: int, frames: Sequence[int], taps: int, times: Sequence[int]
) -> nn.ModuleList:
    """Levels of ``widths``, from the latents upwards; the doubling behind level ``i`` makes ``frames[i]`` of one."""
    levels, channels = [], widths[0]
    for level, width in enumerate(widths):
        layers, is_last = _blocks(channels, width, blocks, taps), level + 1 == len(widths)
        if channels % width:
            raise _unknown(channels, width)
        if not is_last:
            layers.append(Upsample(width, width, times[level]))
        levels.append(Level(layers, None if is_last else Repeated(channels, width, frames[level])))
        channels = width
    return nn.ModuleList(levels)


def _blocks(channels: int, width: int, count: int, taps: int) -> Layers:
    return [ResnetBlock(width if at else channels, width, ChannelNorm, taps) for at in range(count)]


def _unknown(channels: int, width: int) -> CheckpointError:
    return CheckpointError(
        f"This VAE has a level from {channels} to {width} channels, around which no shortcut is known."
    )
