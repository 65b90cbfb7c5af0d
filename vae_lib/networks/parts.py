"""What the full VAEs have in common: residual blocks, the bottleneck around their attention, halving and doubling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = TypeVar("Attention", bound=nn.Module)


class ChannelNorm(nn.Module):
    """Each pixel divided by the root mean square of its channels, times ``gamma`` (channels, 1, 1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_channels = channels
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.num_channels**0.5 * self.gamma


Norm = nn.GroupNorm | ChannelNorm


def conv3x3(in_channels: int, out_channels: int, taps: int = 1) -> nn.Conv2d:
    """Over so many frames of a video at once (``taps``), whose channels lie one after the other, the latest last."""
    return nn.Conv2d(taps * in_channels, out_channels, kernel_size=3, padding=1)


def between_frames(channels: int, makes: int) -> nn.Conv2d:
    """1x1 over three frames: what it ``makes`` of them are the channels of one frame, or of two."""
    return nn.Conv2d(3 * channels, makes * channels, kernel_size=1)


def attend(maps: Iterable[Tensor], height: int, width: int) -> Tensor:
    """Single-head attention over all pixels, of queries, keys and values (B, C, height, width), made one by one."""
    q, k, v = map(_tokens, maps)
    h = F.scaled_dot_product_attention(q, k, v)
    batch, _, _, channels = h.shape
    return h.transpose(2, 3).reshape(batch, channels, height, width)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1 head, HW tokens, C), contiguous: else PyTorch's lean kernels would not take it."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, 1, channels, height * width).transpose(2, 3).contiguous()


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, plus the input; ``nin_shortcut`` (1x1) if the channels change, else None."""

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], Norm], taps: int = 1) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, taps)
        self.norm2 = norm(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, taps)
        self.nin_shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return cast(Tensor, h + (x if self.nin_shortcut is None else self.nin_shortcut(x)))


class MidBlock(nn.Module, Generic[Attention]):
    """The bottleneck at latent resolution, and the only place with attention."""

    def __init__(
        self, channels: int, norm: Callable[[int], Norm], attention: Callable[[int], Attention], taps: int = 1
    ) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm, taps)
        self.attn_1 = attention(channels)
        self.block_2 = ResnetBlock(channels, channels, norm, taps)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block_2(self.attn_1(self.block_1(x))))


class Downsample(nn.Module):
    """Halve height and width by a strided conv; zeros are added at the bottom and the right only.

    ``time_conv`` then makes one frame of two, in the network of a video that has it there; else it is None.
    """

    def __init__(self, channels: int, frames: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=0)
        self.time_conv = between_frames(channels, 1) if frames == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Double height and width: each pixel becomes four, then a conv.

    ``time_conv`` before makes two frames of one, in the network of a video that has it there; else it is None.
    """

    def __init__(self, in_channels: int, out_channels: int, frames: int = 1) -> None:
        super().__init__()
        self.time_conv = between_frames(in_channels, 2) if frames == 2 else None
        self.conv = conv3x3(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


def in_patches(picture: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, C * patch ** 2, H / patch, W / patch), a square's columns before its rows, as in Wan 2.2.

    Rows and columns that are no whole square are left out.
    """
    if patch == 1:
        return picture
    height, width = (side // patch * patch for side in picture.shape[2:])
    return F.pixel_unshuffle(picture[:, :, :height, :width].mT, patch).mT


def out_of_patches(patches: Tensor, patch: int) -> Tensor:
    """The reverse of ``in_patches``."""
    return patches if patch == 1 else F.pixel_shuffle(patches.mT, patch).mT
