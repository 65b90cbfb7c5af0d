"""The shape of Wan's VAE, read off its weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from vae_lib.errors import CheckpointError
from vae_lib.networks.config import MAX_BLOCKS, MAX_CHANNELS, MAX_LEVELS, Shapes


@dataclass(frozen=True)
class WanConfig:
    """The shape of the network. Level 0 is at the picture's resolution, each one after it at half of the one before.

    Attributes:
        widths: channels of each level of the encoder.
        num_res_blocks: residual blocks in a level of the encoder; the decoder has one more.
        use_quant_conv, use_post_quant_conv: whether the half's 1x1 convolution is there. Every file has it; a decoder
            that a host calls after its own has none.
        decoder_ch: channels of the decoder's level 0 where they are others than the encoder's; the other levels follow.
        frames: of Wan 2.2's kind, which has shortcuts around its levels: of how many frames the step from each level
            to the next makes one in a video. None for Wan 2.1's.
        patch: pixels along each side of the squares that the network sees as one.
        times: of the network of videos: of how many frames the step from each level to the next makes one. None for
            that of one picture.
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
    decoder_ch: int | None = None
    frames: tuple[int, ...] | None = None
    patch: int = 1
    times: tuple[int, ...] | None = None

    @property
    def taps(self) -> int:
        """Frames that a causal convolution sees: of a picture, the only one there is."""
        return 1 if self.times is None else 3

    @property
    def steps(self) -> tuple[int, ...]:
        """``times``; ones for one picture."""
        return self.times or (1,) * (len(self.widths) - 1)

    @property
    def frame_ratio(self) -> int:
        """Frames of a video for each of its latents but the first, which is one frame."""
        return math.prod(self.steps)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        return tuple(width * (self.decoder_ch or self.widths[0]) // self.widths[0] for width in self.widths)

    @property
    def latent_channels(self) -> int:
        return self.z_channels

    @property
    def outer_channels(self) -> int:
        return max(self.widths[0], self.decoder_widths[0]) // self.patch**2

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @staticmethod
    def is_in(shapes: Shapes) -> bool:
        """Whether these weights, ``key -> shape``, look like this network's: its norms have a ``gamma``."""
        return any(re.match(r"(en|de)coder\..*\.gamma$", key) for key in shapes)

    @classmethod
    def from_state_dict(cls, shapes: Shapes) -> WanConfig:
        """Infer the configuration from ``key -> shape`` in our names and 2-D shapes.

        Files with only an encoder or only a decoder are legal. Of a ``time_conv``, which works between frames, only
        that it is there is of interest.

        Raises:
            CheckpointError: when keys are missing, or encoder and decoder do not belong together.
        """
        halves = {
            half: _Half.of(shapes, half)
            for half in ("encoder", "decoder")
            if any(key.startswith(f"{half}.") for key in shapes)
        }
        if len({half.in_common for half in halves.values()}) != 1:
            raise CheckpointError(
                "Encoder and decoder do not belong together: (levels, blocks, latent channels) are "
                f"{ {name: half.in_common for name, half in halves.items()} }."
            )
        half, *_ = halves.values()
        encoder, decoder = halves.get("encoder", half), halves.get("decoder", half)
        sides = encoder.channels, decoder.channels
        patch = next((side for side in (2, 1) if {channels // side**2 for channels in sides} <= {3, 4}), 1)
        patch = 1 if half.frames is None else patch
        config = cls(
            encoder.widths,
            encoder.blocks,
            encoder.z_channels,
            encoder.channels // patch**2,
            decoder.channels // patch**2,
            "encoder" in halves,
            "decoder" in halves,
            use_quant_conv="encoder" not in halves or "quant_conv.weight" in shapes,
            use_post_quant_conv="decoder" not in halves or "post_quant_conv.weight" in shapes,
            decoder_ch=None if decoder.widths == encoder.widths else decoder.widths[0],
            frames=encoder.frames,
            patch=patch,
        )
        config._check()
        if config.decoder_widths != decoder.widths:
            raise CheckpointError(
                f"Encoder and decoder do not belong together: their channels are {encoder.widths} and {decoder.widths}."
            )
        return config

    def for_video(self, shapes: Shapes) -> WanConfig:
        """The same for videos, of ``shapes`` with the layers between frames and all temporal taps.

        Raises:
            CheckpointError: when the weights are those of pictures alone.
        """
        halves = [half for half in ("encoder", "decoder") if f"{half}.conv_out.weight" in shapes]
        if any(shapes[f"{half}.conv_out.weight"][1] != 3 * shapes[f"{half}.norm_out.gamma"][0] for half in halves):
            raise CheckpointError(
                "This VAE holds only the weights for single pictures, so it cannot decode or encode videos; use Wan's "
                "own file."
            )
        return replace(self, times=self.frames or self._times(shapes))

    def _times(self, shapes: Shapes) -> tuple[int, ...]:
        """Of Wan 2.1's kind, by the layers that are there; levels from the picture's on."""
        half, blocks = ("encoder", self.num_res_blocks) if self.has_encoder else ("decoder", self.num_res_blocks + 1)
        steps = [
            2 if f"{half}.layers.{level * (blocks + 1) + blocks}.time_conv.weight" in shapes else 1
            for level in range(len(self.widths) - 1)
        ]
        return tuple(steps if self.has_encoder else steps[::-1])

    def _check(self) -> None:
        channels = *self.widths, *self.decoder_widths, self.z_channels, self.in_channels, self.out_channels
        if max(channels) > MAX_CHANNELS or len(self.widths) > MAX_LEVELS:
            raise CheckpointError("This is far larger than any VAE: the file is damaged.")
        if not 1 <= self.num_res_blocks <= MAX_BLOCKS or self.z_channels < 1:
            raise CheckpointError("This VAE has a level without residual blocks, or no latents: keys are missing.")
        if self.frames is None and any(width % 2 for width in (*self.widths[1:], *self.decoder_widths[1:])):
            raise CheckpointError("This VAE has a level whose channels cannot be halved: the file is damaged.")


@dataclass(frozen=True)
class _Half:
    """What an encoder or a decoder says of itself; levels from the picture's on, ``channels`` are the picture's."""

    widths: tuple[int, ...]
    blocks: int
    z_channels: int
    channels: int
    frames: tuple[int, ...] | None

    @property
    def in_common(self) -> tuple[object, ...]:
        return (len(self.widths), self.blocks, self.z_channels, *([] if self.frames is None else [self.frames]))

    @classmethod
    def of(cls, shapes: Shapes, half: str) -> _Half:
        widths, blocks, frames = _levels(shapes, half)
        if half == "encoder":
            moments, _ = _conv(shapes, "encoder.conv_out.weight")
            _, channels = _conv(shapes, "encoder.conv_in.weight")
            return cls(widths, blocks, moments // 2, channels, frames)
        _, z_channels = _conv(shapes, "decoder.conv_in.weight")
        channels, _ = _conv(shapes, "decoder.conv_out.weight")
        return cls(widths[::-1], blocks - 1, z_channels, channels, None if frames is None else frames[::-1])


def _conv(shapes: Shapes, key: str) -> tuple[int, int]:
    """(output channels, input channels) of a convolution."""
    shape = tuple(shapes.get(key, ()))
    if not shape:
        raise CheckpointError(f"This VAE is incomplete: '{key}' is missing.")
    if len(shape) != 4 or min(shape) < 1:
        raise CheckpointError(f"This VAE is damaged: '{key}' has shape {shape}, not that of a convolution.")
    return shape[0], shape[1]


def _levels(shapes: Shapes, half: str) -> tuple[tuple[int, ...], int, tuple[int, ...] | None]:
    """Width of each level in the order in which they run, residual blocks in each, frames of each step between two.

    Layers are numbered through; those of Wan 2.2 within their level, so that there is a number more in their keys.
    """
    pattern = re.compile(rf"{half}\.layers\.(?:(\d{{1,3}})\.layers\.)?(\d{{1,3}})\.(conv1|conv|time_conv)\.weight")
    matches = [match for key in shapes if (match := pattern.fullmatch(key))]
    kinds = {(int(match[1] or 0), int(match[2])): match[3] for match in matches if match[3] != "time_conv"}
    doubles = {int(match[1]) for match in matches if match[3] == "time_conv" and match[1]}
    blocks = next((at for level, at in sorted(kinds) if kinds[level, at] == "conv"), len(kinds))
    in_levels = any(match[1] for match in matches)
    layers = {level * (blocks + 1) + at: kind for (level, at), kind in kinds.items()}
    wanted = ["conv" if at % (blocks + 1) == blocks else "conv1" for at in range(len(layers))]
    if not blocks or [layers.get(at) for at in range(len(layers))] != wanted or wanted[-1] == "conv":
        raise CheckpointError(f"This VAE is incomplete: layers of its {half} are missing.")
    if len(layers) % (blocks + 1) != blocks:
        raise CheckpointError(f"This VAE is incomplete: blocks of the last level of its {half} are missing.")
    count = len(layers) // (blocks + 1) + 1
    first = "{half}.layers.{level}.layers.0.conv1.weight" if in_levels else "{half}.layers.{at}.conv1.weight"
    names = [first.format(half=half, level=level, at=level * (blocks + 1)) for level in range(count)]
    frames = tuple(2 if level in doubles else 1 for level in range(count - 1)) if in_levels else None
    return tuple(_conv(shapes, name)[0] for name in names), blocks, frames
