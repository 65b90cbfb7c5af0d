"""The VAE of Wan 2.1 for one picture: that of Qwen-Image, Anima and Krea 2 as well.

In Wan's own code (github.com/Wan-Video/Wan2.1, ``wan/modules/vae.py``) the convolutions have a third axis, time, and
look only backwards: before the first frame there are zeros. Of one picture they are 2-D convolutions by their last
temporal tap, and what doubles or halves the number of frames (``time_conv``) is not used. The norms see one pixel at a
time, so that the attention in the middle is all that is not local.

Parameter names are ours; `vae_lib.checkpoints.layouts` knows those of files.
The forward pass is the plain one, the reference: ``vae_lib.engine`` runs the same modules in bands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.errors import CheckpointError
from vae_lib.networks.config import MAX_BLOCKS, MAX_CHANNELS, MAX_LEVELS, Shapes
from vae_lib.networks.network import Network
from vae_lib.networks.parts import ChannelNorm, Downsample, MidBlock, ResnetBlock, Upsample, attend, conv3x3


@dataclass(frozen=True)
class WanConfig:
    """The shape of the network. Level 0 is at the picture's resolution, each one after it at half of the one before.

    Attributes:
        widths: channels of each level; an upsampling halves those that come into the next one.
        num_res_blocks: residual blocks in a level of the encoder; the decoder has one more.
        use_quant_conv, use_post_quant_conv: whether the half's 1x1 convolution is there. Every file has it; a decoder
            that a host calls after its own has none.
    """

    widths: tuple[int, ...] = (96, 192, 384, 384)
    num_res_blocks: int = 2
    z_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3
    has_encoder: bool = True
    has_decoder: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def latent_channels(self) -> int:
        return self.z_channels

    @property
    def outer_channels(self) -> int:
        return self.widths[0]

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.widths) - 1))

    @staticmethod
    def is_in(shapes: Shapes) -> bool:
        """Whether these weights, ``key -> shape``, look like this network's: its norms have a ``gamma``."""
        return any(re.match(r"(en|de)coder\..*\.gamma$", key) for key in shapes)

    @classmethod
    def from_state_dict(cls, shapes: Shapes) -> WanConfig:
        """Infer the configuration from ``key -> shape`` in our names and 2-D shapes.

        Files with only an encoder or only a decoder are legal.

        Raises:
            CheckpointError: when keys are missing, or encoder and decoder do not belong together.
        """
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        in_channels = out_channels = 3
        if any(key.startswith("encoder.") for key in shapes):
            widths, blocks = _levels(shapes, "encoder")
            moments, _ = _conv(shapes, "encoder.conv_out.weight")
            _, in_channels = _conv(shapes, "encoder.conv_in.weight")
            found["encoder"] = widths, blocks, moments // 2
        if any(key.startswith("decoder.") for key in shapes):
            widths, blocks = _levels(shapes, "decoder")
            _, z_channels = _conv(shapes, "decoder.conv_in.weight")
            out_channels, _ = _conv(shapes, "decoder.conv_out.weight")
            found["decoder"] = widths[::-1], blocks - 1, z_channels
        if len(set(found.values())) != 1:
            raise CheckpointError(
                f"Encoder and decoder do not belong together: (widths, blocks, latent channels) are {found}."
            )
        widths, blocks, z_channels = next(iter(found.values()))
        if max(*widths, z_channels, in_channels, out_channels) > MAX_CHANNELS or len(widths) > MAX_LEVELS:
            raise CheckpointError("This is far larger than any VAE: the file is damaged.")
        if not 1 <= blocks <= MAX_BLOCKS or z_channels < 1:
            raise CheckpointError("This VAE has a level without residual blocks, or no latents: keys are missing.")
        if any(width % 2 for width in widths[1:]):
            raise CheckpointError("This VAE has a level whose channels cannot be halved: the file is damaged.")
        has_encoder, has_decoder = "encoder" in found, "decoder" in found
        return cls(
            widths,
            blocks,
            z_channels,
            in_channels,
            out_channels,
            has_encoder,
            has_decoder,
            use_quant_conv=not has_encoder or "quant_conv.weight" in shapes,
            use_post_quant_conv=not has_decoder or "post_quant_conv.weight" in shapes,
        )


def _conv(shapes: Shapes, key: str) -> tuple[int, int]:
    """(output channels, input channels) of a convolution."""
    shape = tuple(shapes.get(key, ()))
    if not shape:
        raise CheckpointError(f"This VAE is incomplete: '{key}' is missing.")
    if len(shape) != 4 or min(shape) < 1:
        raise CheckpointError(f"This VAE is damaged: '{key}' has shape {shape}, not that of a convolution.")
    return shape[0], shape[1]


def _levels(shapes: Shapes, half: str) -> tuple[tuple[int, ...], int]:
    """(width of each level in the order in which they run, residual blocks in each) of a half's ``layers``."""
    pattern = re.compile(rf"{half}\.layers\.(\d{{1,3}})\.(conv1|conv)\.weight")
    layers = {int(match[1]): match[2] for key in shapes if (match := pattern.fullmatch(key))}
    blocks = next((at for at in sorted(layers) if layers[at] == "conv"), len(layers))
    kinds = ["conv" if at % (blocks + 1) == blocks else "conv1" for at in range(len(layers))]
    if not blocks or [layers.get(at) for at in range(len(layers))] != kinds or kinds[-1] == "conv":
        raise CheckpointError(f"This VAE is incomplete: layers of its {half} are missing.")
    if len(layers) % (blocks + 1) != blocks:
        raise CheckpointError(f"This VAE is incomplete: blocks of the last level of its {half} are missing.")
    firsts = range(0, len(layers), blocks + 1)
    return tuple(_conv(shapes, f"{half}.layers.{at}.conv1.weight")[0] for at in firsts), blocks


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


def _layers(widths: Sequence[int], blocks: int, resize: Callable[[int], Downsample | Upsample]) -> nn.ModuleList:
    """Residual blocks level by level, the first of ``widths`` channels, and a ``resize`` between two levels."""
    layers: list[ResnetBlock | Downsample | Upsample] = []
    channels = widths[0]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            layers.append(ResnetBlock(channels, width, ChannelNorm))
            channels = width
        if level + 1 < len(widths):
            resized = resize(width)
            layers.append(resized)
            channels = resized.conv.out_channels
    return nn.ModuleList(layers)


def _doubled(channels: int) -> Upsample:
    return Upsample(channels, channels // 2)


class Encoder(nn.Module):
    """Picture (B, in_channels, H, W) -> moments (B, 2 * z_channels, H / downscale, W / downscale)."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = conv3x3(config.in_channels, widths[0])
        self.layers = _layers(widths, config.num_res_blocks, Downsample)
        self.mid = MidBlock(widths[-1], ChannelNorm, PackedAttention)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], 2 * config.z_channels)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.conv_in(picture)
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """z (B, z_channels, h, w) -> picture (B, out_channels, h * downscale, w * downscale)."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = conv3x3(config.z_channels, widths[0])
        self.mid = MidBlock(widths[0], ChannelNorm, PackedAttention)
        self.layers = _layers(widths, config.num_res_blocks + 1, _doubled)
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = conv3x3(widths[-1], config.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(x))))


class WanVAE(Network):
    """The VAE of Wan 2.1 and Qwen-Image for one picture. No mean and no deviation of the latents is applied here.

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
