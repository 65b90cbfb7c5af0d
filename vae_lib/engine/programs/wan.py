"""Wan's VAE as passes: a stream up to the attention in its middle, the attention, and a stream from there on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from vae_lib.engine.attention import attention_rows
from vae_lib.engine.compute import Compute
from vae_lib.engine.convolution import best_shape
from vae_lib.engine.linear import Pointwise
from vae_lib.engine.passes import (
    INPUT,
    OUTPUT,
    AttentionPass,
    BetweenFrames,
    Closes,
    Link,
    MapSize,
    Opens,
    Part,
    Pass,
    Shortcut,
    Stage,
    StreamPass,
    Tiling,
)
from vae_lib.networks import Downsample, Level, Norm, PackedAttention, ResnetBlock, Upsample, WanVAE

NETWORK = WanVAE
RECOMPUTES = False
_MIDDLE = "middle"


class _Layers:
    """Collects the parts of a stream over a map of ``source``'s size, ``rows`` of whose rows there are in a band."""

    def __init__(self, source: MapSize, rows: int, compute: Compute) -> None:
        self.source = self.size = source
        self.rows, self.compute = rows, compute
        self.parts: list[Part] = []

    def _stage(self, conv: nn.Conv2d, scale: str = "same", norm: Norm | None = None) -> Stage:
        """The next one; the algorithm is that which is fastest for a band, for which its weights are prepared."""
        pixels = self.rows * self.size.width
        shape = best_shape(conv.in_channels, conv.out_channels, scale, pixels, self.compute)
        taps = conv.in_channels // self.size.channels
        self.size = MapSize(*shape.output_size(self.size.height, self.size.width), shape.out_channels)
        self.rows = max(1, shape.output_size(self.rows, 2)[0])
        return Stage(conv, shape, norm, taps=taps)

    def conv(self, conv: nn.Conv2d, scale: str = "same", norm: Norm | None = None) -> None:
        self.parts.append(Link((self._stage(conv, scale, norm),)))

    def block(self, block: ResnetBlock) -> None:
        stages = self._stage(block.conv1, norm=block.norm1), self._stage(block.conv2, norm=block.norm2)
        self.parts.append(Link(stages, Shortcut(0, block.nin_shortcut)))

    def all(self, layers: Iterable[nn.Module]) -> None:
        for layer in layers:
            if isinstance(layer, Level):
                self._level(layer)
            elif isinstance(layer, ResnetBlock):
                self.block(layer)
            elif isinstance(layer, Upsample):
                self._between_frames(layer.time_conv)
                self.conv(layer.conv, "up")
            elif isinstance(layer, Downsample):
                self.conv(layer.conv, "down")
                self._between_frames(layer.time_conv)

    def _between_frames(self, conv: nn.Conv2d | None) -> None:
        if conv is not None:
            self.parts.append(BetweenFrames(conv))

    def _level(self, level: Level) -> None:
        if level.shortcut is not None:
            self.parts.append(Opens(level.shortcut))
        self.all(level.layers)
        if level.shortcut is not None:
            self.parts.append(Closes(level.shortcut))

    def passed(self, source: str, store: str, rows: int) -> StreamPass:
        return StreamPass(source, tuple(self.parts), rows, store)


def _attention(block: PackedAttention, size: MapSize, tiling: Tiling, compute: Compute) -> AttentionPass:
    packed = block.to_qkv
    assert packed.bias is not None
    parts = [Pointwise(*part) for part in zip(packed.weight.chunk(3), packed.bias.chunk(3), strict=True)]
    rows, key_rows = attention_rows(size, tiling, compute)
    return AttentionPass(_MIDDLE, block.norm, (*parts, block.proj), rows, key_rows)


def _latent_rows(picture: MapSize, downscale: int, tiling: Tiling, compute: Compute) -> int:
    """Rows of latents in a band: about the same in each, and such that their rows at the ``picture``'s size fit."""
    height = -(-picture.height // downscale)
    count = -(-height // max(1, tiling.rows(picture, compute.dtype) // downscale))
    return -(-height // count)


def decoder_passes(network: WanVAE, latent: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
    """From the map "input" (h, w, z_channels) to the map "output" (8 h, 8 w, 3), of Wan 2.2 in patches (.., 12)."""
    decoder, config = network.decoder, network.config
    assert decoder is not None
    scale = config.downscale
    middle = MapSize(latent.height, latent.width, config.decoder_widths[-1])
    picture = MapSize(scale * latent.height, scale * latent.width, config.outer_channels)
    rows = tiling.rows(middle, compute.dtype)
    before = _Layers(latent, rows, compute)
    before.conv(decoder.conv_in)
    before.block(decoder.mid.block_1)
    latent_rows = _latent_rows(picture, scale, tiling, compute)
    behind = _Layers(middle, latent_rows, compute)
    behind.block(decoder.mid.block_2)
    behind.all(decoder.layers)
    behind.conv(decoder.conv_out, norm=decoder.norm_out)
    return [
        before.passed(INPUT, _MIDDLE, rows),
        _attention(decoder.mid.attn_1, middle, tiling, compute),
        behind.passed(_MIDDLE, OUTPUT, scale // config.patch * latent_rows),
    ]


def encoder_passes(network: WanVAE, image: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
    """From the map "input" (H, W, 3), of Wan 2.2 in patches, to the map "output" (H / 8, W / 8, 2 * z_channels)."""
    encoder, config = network.encoder, network.config
    assert encoder is not None
    picture = MapSize(config.patch * image.height, config.patch * image.width, config.outer_channels)
    latent_rows = _latent_rows(picture, config.downscale, tiling, compute)
    before = _Layers(image, config.downscale // config.patch * latent_rows, compute)
    before.conv(encoder.conv_in)
    before.all(encoder.layers)
    before.block(encoder.mid.block_1)
    middle = before.size
    rows = tiling.rows(middle, compute.dtype)
    behind = _Layers(middle, rows, compute)
    behind.block(encoder.mid.block_2)
    behind.conv(encoder.conv_out, norm=encoder.norm_out)
    return [
        before.passed(INPUT, _MIDDLE, latent_rows),
        _attention(encoder.mid.attn_1, middle, tiling, compute),
        behind.passed(_MIDDLE, OUTPUT, rows),
    ]
