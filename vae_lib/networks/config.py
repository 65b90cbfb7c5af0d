"""The shape of an AutoencoderKL, read off its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vae_lib.errors import CheckpointError

NORM_GROUPS = 32  # of all published VAEs; diffusers lets a config.json say another number

# No VAE comes near; they bound the network that a hostile file can ask for.
MAX_CHANNELS = 8192
MAX_LEVELS = 16
MAX_BLOCKS = 32

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The hyper-parameters of latent diffusion's KL autoencoder (Rombach et al., 2022), by their own names.

    Level ``i`` of the encoder and of the decoder is ``ch * ch_mult[i]`` channels wide; level 0 is the one at
    image resolution, and each level after it halves the resolution. The multiples are integers in every known
    VAE; widths that are no multiple of ``ch`` give floats. ``decoder_ch`` stands for the decoder's ``ch`` where that is
    another one, as in FLUX.2's small decoder.
    """

    in_channels: int = 3
    out_channels: int = 3
    ch: int = 128
    ch_mult: tuple[float, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    embed_dim: int = 4
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    double_z: bool = True
    has_encoder: bool = True
    has_decoder: bool = True
    decoder_ch: int | None = None
    norm_groups: int = NORM_GROUPS

    @property
    def patch(self) -> int:
        return 1

    @property
    def taps(self) -> int:
        return 1

    @property
    def frame_ratio(self) -> int:
        return 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder, from image resolution downwards."""
        return tuple(round(self.ch * multiple) for multiple in self.ch_mult)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        return tuple(round((self.decoder_ch or self.ch) * multiple) for multiple in self.ch_mult)

    @property
    def outer_channels(self) -> int:
        return max(self.widths[0], self.decoder_widths[0])

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side: 8 for every Stable Diffusion VAE."""
        return int(2 ** (len(self.ch_mult) - 1))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that ``decode`` takes and ``encode`` gives."""
        return self.embed_dim if self.use_quant_conv or self.use_post_quant_conv else self.z_channels

    @classmethod
    def from_state_dict(cls, shapes: Shapes, norm_groups: int = NORM_GROUPS) -> AutoencoderKLConfig:
        """Infer the configuration from ldm-layout ``key -> shape``. Keys outside the VAE are not looked at.

        ``norm_groups`` cannot be inferred: weights look the same for any number.

        Files with only an encoder or only a decoder are legal. Without an encoder nothing tells ``ch`` apart
        from the width of level 0, so ``ch_mult`` starts with 1.

        Raises:
            CheckpointError: when keys are missing, or the network is not an AutoencoderKL of images.
        """
        has_encoder = any(key.startswith("encoder.") for key in shapes)
        has_decoder = any(key.startswith("decoder.") for key in shapes)
        if not (has_encoder or has_decoder):
            raise CheckpointError("There is no VAE in these weights: no 'encoder.' or 'decoder.' keys.")
        if any(len(shape) == 5 for key, shape in shapes.items() if key.startswith(("encoder.", "decoder."))):
            raise CheckpointError("This is a video VAE: its convolutions have three dimensions.")
        if any(re.match(r"(encoder\.down|decoder\.up)\.\d+\.attn\.", key) for key in shapes):
            raise CheckpointError(
                "This autoencoder has attention inside its levels (as kl-f16 and kl-f32 do); "
                "only the Stable Diffusion family of VAEs is supported."
            )
        if any(key.startswith("quantize.") for key in shapes):
            raise CheckpointError("This is a VQ autoencoder (with a codebook), not the KL one of Stable Diffusion.")

        in_channels = out_channels = 3
        ch = embed_dim = None
        if has_encoder:
            widths, num_res_blocks = _levels(shapes, "encoder.down")
            ch, in_channels = _conv(shapes, "encoder.conv_in.weight")
            moments, _ = _conv(shapes, "encoder.conv_out.weight")
            if moments % 2:
                raise CheckpointError("This autoencoder gives no mean and variance per latent: not a KL VAE.")
            z_channels = moments // 2
        decoder_ch = None
        if has_decoder:
            encoder_found = (widths, num_res_blocks, z_channels) if has_encoder else None
            widths, num_blocks = _levels(shapes, "decoder.up")
            num_res_blocks = num_blocks - 1
            out_channels, _ = _conv(shapes, "decoder.conv_out.weight")
            _, z_channels = _conv(shapes, "decoder.conv_in.weight")
            found = (widths, num_res_blocks, z_channels)
            if encoder_found is not None and encoder_found != found:
                if encoder_found[1:] != found[1:] or _multiples(encoder_found[0]) != _multiples(widths):
                    raise CheckpointError(
                        "Encoder and decoder do not belong together: (widths, blocks, latent channels) are "
                        f"{encoder_found} and {found}."
                    )
                (widths, *_), decoder_ch = encoder_found, widths[0]
        ch = ch or widths[0]
        embed_dim = z_channels
        if "quant_conv.weight" in shapes:
            embed_dim = _conv(shapes, "quant_conv.weight")[0] // 2
        if "post_quant_conv.weight" in shapes:
            embed_dim = _conv(shapes, "post_quant_conv.weight")[1]

        config = cls(
            in_channels=in_channels,
            out_channels=out_channels,
            ch=ch,
            ch_mult=tuple(width // ch if width % ch == 0 else width / ch for width in widths),
            num_res_blocks=num_res_blocks,
            z_channels=z_channels,
            embed_dim=embed_dim,
            use_quant_conv="quant_conv.weight" in shapes,
            use_post_quant_conv="post_quant_conv.weight" in shapes,
            has_encoder=has_encoder,
            has_decoder=has_decoder,
            decoder_ch=decoder_ch,
            norm_groups=norm_groups,
        )
        config._check()
        return config

    def _check(self) -> None:
        widths = (self.ch, *self.widths, *self.decoder_widths)
        largest = max(self.in_channels, self.out_channels, self.z_channels, self.embed_dim, *widths)
        if largest > MAX_CHANNELS or len(self.ch_mult) > MAX_LEVELS or self.num_res_blocks > MAX_BLOCKS:
            raise CheckpointError("This is far larger than any VAE: the file is damaged.")
        if min(self.in_channels, self.out_channels, self.z_channels, self.embed_dim) < 1:
            raise CheckpointError("This VAE has a layer without channels: the file is damaged.")
        odd = [width for width in widths if width % self.norm_groups]
        if odd:
            raise CheckpointError(
                f"This VAE has a layer of {odd[0]} channels, which {self.norm_groups} norm groups cannot divide."
            )
        if self.num_res_blocks < 1:
            raise CheckpointError("This VAE has a level without residual blocks: keys are missing.")


def _conv(shapes: Shapes, key: str) -> tuple[int, int]:
    """(output channels, input channels) of a 2-D convolution."""
    if key not in shapes:
        raise CheckpointError(f"This VAE is incomplete: '{key}' is missing.")
    shape = tuple(shapes[key])
    if len(shape) != 4:
        raise CheckpointError(f"This is not an image VAE: '{key}' has shape {shape}, not that of a 2-D conv.")
    if min(shape) < 1:
        raise CheckpointError(f"This VAE is damaged: '{key}' has shape {shape}.")
    return shape[0], shape[1]


def _levels(shapes: Shapes, prefix: str) -> tuple[tuple[int, ...], int]:
    """(width of each level, residual blocks per level) of ``encoder.down`` or ``decoder.up``."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,3})\.block\.(\d{1,3})\.conv1\.weight")
    blocks: dict[int, set[int]] = {}
    for key in shapes:
        if match := pattern.fullmatch(key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    if not blocks or not _is_range(blocks) or not all(_is_range(found) for found in blocks.values()):
        raise CheckpointError(f"This VAE is incomplete: blocks of '{prefix}' are missing.")
    counts = {len(found) for found in blocks.values()}
    if len(counts) != 1:
        raise CheckpointError(f"This VAE is incomplete: levels of '{prefix}' have {sorted(counts)} blocks.")
    widths = tuple(_conv(shapes, f"{prefix}.{level}.block.0.conv1.weight")[0] for level in sorted(blocks))
    return widths, counts.pop()


def _multiples(widths: Sequence[int]) -> list[float]:
    return [width / max(widths[0], 1) for width in widths]


def _is_range(indices: Iterable[int]) -> bool:
    found = sorted(indices)
    return found == list(range(len(found)))
