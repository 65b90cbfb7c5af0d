"""AutoencoderKL as a list of passes: what is kept, what is computed again, and how many rows at a time."""

from __future__ import annotations

from typing import cast

from torch import nn

from vae_lib.engine.attention import attention_rows
from vae_lib.engine.compute import Compute
from vae_lib.engine.convolution import best_shape
from vae_lib.engine.passes import (
    INPUT,
    OUTPUT,
    AttentionPass,
    ConvPass,
    MapSize,
    Pass,
    Shortcut,
    Stage,
    Tiling,
)
from vae_lib.networks import AttnBlock, AutoencoderKL, DownLevel, MidBlock, Norm, ResnetBlock, UpLevel

NETWORK = AutoencoderKL
RECOMPUTES = True


class _Builder:
    """Collects the passes of one network while tracking the current map ``x`` and its size."""

    def __init__(self, source: MapSize, tiling: Tiling, compute: Compute) -> None:
        self.size, self.tiling, self.compute, self.dtype = source, tiling, compute, compute.dtype
        self.passes: list[Pass] = []
        self.x = INPUT
        self._maps = 0

    def _name(self) -> str:
        self._maps += 1
        return f"x{self._maps}"

    def stage(
        self,
        conv: nn.Conv2d,
        size: MapSize,
        scale: str = "same",
        norm: Norm | None = None,
        of: str = "",
    ) -> Stage:
        """A stage whose input has ``size``; ``of`` names the statistics it is normalised with."""
        pixels = size.height * size.width
        shape = best_shape(conv.in_channels, conv.out_channels, scale, pixels, self.compute)
        return Stage(conv, shape, norm, of)

    def conv(self, conv: nn.Conv2d, scale: str = "same", norm: Norm | None = None, to: str = "") -> None:
        """A convolution that replaces ``x``."""
        stage = self.stage(conv, self.size, scale, norm, self.x)
        size = self._output(stage, self.size)
        name = to or self._name()
        statistics = "" if to == OUTPUT else name
        # channels that the layer reads for a pixel that it writes, or writes: the larger makes the band
        read = {"same": 1.0, "up": 0.25, "down": 4.0}[scale] * self.size.channels
        widest = max(size.channels, round(read))
        rows = self.tiling.rows(MapSize(size.height, size.width, widest), self.dtype)
        self.passes.append(
            ConvPass(self.x, (stage,), rows, store=name, statistics=statistics, frees_source=self.x != INPUT)
        )
        self.x, self.size = name, size

    def _output(self, stage: Stage, size: MapSize) -> MapSize:
        return MapSize(*stage.shape.output_size(size.height, size.width), stage.shape.out_channels)

    def resnet(self, block: ResnetBlock, recompute: bool, upsample: nn.Conv2d | None = None) -> None:
        """A residual block; with ``upsample`` that convolution comes first and its result is never kept."""
        head = () if upsample is None else (self.stage(upsample, self.size, "up"),)
        size = self._output(head[0], self.size) if head else self.size
        entry, hidden = f"{self.x} upsampled" if head else self.x, f"{self.x} hidden"
        first = self.stage(block.conv1, size, norm=block.norm1, of=entry)
        middle = self._output(first, size)
        second = self.stage(block.conv2, middle, norm=block.norm2, of=hidden)
        rows = self.tiling.rows(MapSize(size.height, size.width, max(size.channels, middle.channels)), self.dtype)
        x, shortcut = self.x, block.nin_shortcut
        if head:
            self.passes.append(ConvPass(x, head, rows, statistics=entry))
        if recompute:
            self.passes.append(ConvPass(x, (*head, first), rows, statistics=hidden))
            chain = (*head, first, second)
            if head or shortcut is not None:
                out = self._name()
                add = Shortcut(len(head), shortcut)
                self.passes.append(ConvPass(x, chain, rows, store=out, statistics=out, shortcut=add, frees_source=True))
                self.x = out
            else:
                self.passes.append(ConvPass(x, chain, rows, add_to=x, statistics=x))
        else:
            kept = self._name()
            if shortcut is not None:  # the input's rows give way to the hidden rows and the shortcut's
                self.x = self._name()
                side = Shortcut(0, shortcut)
                self.passes.append(
                    ConvPass(
                        x,
                        (first,),
                        rows,
                        store=kept,
                        statistics=hidden,
                        shortcut=side,
                        side=self.x,
                        frees_source=True,
                    )
                )
            else:
                self.passes.append(ConvPass(x, (first,), rows, store=kept, statistics=hidden))
            self.passes.append(ConvPass(kept, (second,), rows, add_to=self.x, statistics=self.x, frees_source=True))
        self.size = middle

    def attention(self, block: AttnBlock) -> None:
        rows, key_rows = attention_rows(self.size, self.tiling, self.compute)
        projections = block.q, block.k, block.v, block.proj_out
        self.passes.append(AttentionPass(self.x, block.norm, projections, rows, key_rows, self.x, self.x))

    def mid(self, mid: MidBlock[AttnBlock]) -> None:
        self.resnet(mid.block_1, False)
        self.attention(mid.attn_1)
        self.resnet(mid.block_2, False)


def decoder_passes(network: AutoencoderKL, latent: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
    """From the map "input" (h, w, z_channels) to the map "output" (8 h, 8 w, 3)."""
    decoder = network.decoder
    assert decoder is not None
    build = _Builder(latent, tiling, compute)
    build.conv(decoder.conv_in)
    build.mid(decoder.mid)
    upsample: nn.Conv2d | None = None
    levels = cast(list[UpLevel], list(decoder.up))
    for index, level in reversed(list(enumerate(levels))):
        for block in cast(list[ResnetBlock], list(level.block)):
            build.resnet(block, index < tiling.recompute, upsample)
            upsample = None
        if level.upsample is not None:
            if index - 1 < tiling.recompute:
                upsample = level.upsample.conv  # goes with the next block
            else:
                build.conv(level.upsample.conv, "up")
    build.conv(decoder.conv_out, norm=decoder.norm_out, to=OUTPUT)
    return build.passes


def encoder_passes(network: AutoencoderKL, image: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
    """From the map "input" (H, W, 3) to the map "output" (H / 8, W / 8, 2 * z_channels)."""
    encoder = network.encoder
    assert encoder is not None
    build = _Builder(image, tiling, compute)
    build.conv(encoder.conv_in)
    for index, level in enumerate(cast(list[DownLevel], list(encoder.down))):
        for block in cast(list[ResnetBlock], list(level.block)):
            build.resnet(block, index < tiling.recompute)
        if level.downsample is not None:
            build.conv(level.downsample.conv, "down")
    build.mid(encoder.mid)
    build.conv(encoder.conv_out, norm=encoder.norm_out, to=OUTPUT)
    return build.passes
