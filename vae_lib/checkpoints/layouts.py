"""The key layouts in which VAEs are published, and how each becomes the one that our networks use.

=======================  ================================================================================
``ldm``                  ``decoder.up.0.block.0.conv1.weight``: the original, and our own
``ldm in a checkpoint``  the same under ``first_stage_model.`` (or ``vae.``), beside UNet and text encoders
                         also with some of diffusers' names in it, as of attention: ``decoder.mid.attn_1.to_q.weight``
``diffusers``            ``decoder.up_blocks.3.resnets.0.conv1.weight``
``wan``                  ``decoder.upsamples.0.residual.2.weight``: Wan 2.1's own, of Qwen-Image too; 3-D convolutions
                         (of Wan 2.2, ``decoder.upsamples.0.upsamples.0.residual.2.weight``)
``wan (diffusers)``      ``decoder.up_blocks.0.resnets.0.norm1.gamma``: the same in diffusers
``wan (2-D)``            the same without time: Qwen2D, a conversion for pictures
``taesd``                ``3.conv.0.weight``, one file each for encoder and decoder
``taesd (diffusers)``    ``decoder.layers.2.conv.0.weight``, both in one file
``taehv``                ``decoder.7.conv.weight``: the TAESD of video models, both in one file
=======================  ================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch

from vae_lib.checkpoints import taehv
from vae_lib.checkpoints.foreign import describe_foreign
from vae_lib.errors import CheckpointError

Layout = Literal[
    "ldm",
    "ldm in a checkpoint",
    "diffusers",
    "wan",
    "wan (diffusers)",
    "wan (2-D)",
    "taesd",
    "taesd (diffusers)",
    "taehv",
]

# what wrappers put before a VAE's keys, and what checkpoints do
_PREFIX = re.compile(
    r"((?:(?:module|_orig_mod|ema_model|ema|model|net|network|generator|first_stage_model|vae|autoencoder)\.)*)"
    r"(?:taesd_)?(?:encoder|decoder)\."
)
_IN_A_CHECKPOINT = re.compile(r"(?:^|\.)(first_stage_model|vae|autoencoder)\.")
_VAE_KEY = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv|quantize)\.")
_NESTED = re.compile(r"^(?:encoder|decoder)\.((?:post_)?quant_conv\.)")  # where FLUX.2's own file has them
_LDM_KEY = re.compile(r"(encoder\.down|decoder\.up)\.\d+\.block\.|(encoder|decoder)\.mid\.(block_[12]|attn_1)\.")
_DIFFUSERS_KEY = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.\d+\.|(encoder|decoder)\.mid_block\.")
_WAN_KEY = re.compile(r"(encoder|decoder)\.(middle\.[02]\.residual|(up|down)samples\.\d+\.(residual|resample))\.")
_WAN_DIFFUSERS_KEY = re.compile(r"(encoder|decoder)\.mid_block\.(resnets\.[01]\.norm1\.gamma|attentions\.0\.to_qkv\.)")
_WAN_TOP = re.compile(r"(encoder|decoder|conv[12]|quant_conv|post_quant_conv)\.")
_TIME = re.compile(r"\.time_conv\.")  # between frames: not used for a picture
_TAESD_BARE = re.compile(r"\d{1,3}\..+")
_TAESD_KEY = re.compile(r"(?:taesd_)?(encoder|decoder)\.(\d{1,3})\.(.+)")
_TAEHV_KEY = re.compile(r"(encoder|decoder)\.\d{1,3}\.conv\.weight")  # makes two frames of one, or one of two
_TINY_KEY = re.compile(r"(encoder|decoder)\.layers\.(\d{1,3})\.(.+)")
# Beside the VAE: what training leaves in its file, and the other models of a checkpoint. Anything else may say
# something of its latents.
_UNRELATED = re.compile(
    r"(loss|model|model_ema|ema|discriminator|logvar|cond_stage_model|conditioner|text_encoders?|text_model|unet"
    r"|transformer|denoiser|first_stage_model|vae|autoencoder|module|epoch|global_step|scale_factor"
    r"|betas|alphas_\w+|sqrt_\w+|log_one_minus_\w+|posterior_\w+)(\.|$)"
)
_TAESD_BLOCK = "3.conv.0.weight"  # there in both halves, with and without diffusers' shift by one

_UP_BLOCK = re.compile(r"decoder\.up_blocks\.(\d{1,3})\.")
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1."),
        (r"\.resnets\.(\d+)\.", r".block.\1."),
        (r"\.mid_block\.block\.0\.", ".mid.block_1."),
        (r"\.mid_block\.block\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
        (r"\.attn_1\.(?:to_q|query)\.", ".attn_1.q."),
        (r"\.attn_1\.(?:to_k|key)\.", ".attn_1.k."),
        (r"\.attn_1\.(?:to_v|value)\.", ".attn_1.v."),
        (r"\.attn_1\.(?:to_out\.0|proj_attn)\.", ".attn_1.proj_out."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
)
_WAN_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conv1\.", "quant_conv."),
        (r"^conv2\.", "post_quant_conv."),
        (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
        (r"\.middle\.0\.|\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.middle\.1\.|\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.middle\.2\.|\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.(?:downsamples|upsamples|down_blocks)\.(\d+)(?=\.)", r".layers.\1"),
        (r"\.residual\.0\.", ".norm1."),
        (r"\.residual\.2\.", ".conv1."),
        (r"\.residual\.3\.", ".norm2."),
        (r"\.residual\.6\.", ".conv2."),
        (r"\.(?:conv_)?shortcut\.", ".nin_shortcut."),
        (r"\.resample\.1\.", ".conv."),
        (r"\.head\.0\.", ".norm_out."),
        (r"\.head\.2\.", ".conv_out."),
    )
)
# of Wan 2.2 in diffusers, which keeps its encoder in levels as well
_WAN_LEVEL = re.compile(
    r"(encoder|decoder)\.(?:up|down)_blocks\.(\d{1,3})\.(?:resnets\.(\d{1,3})|(?:up|down)sampler)\."
)
_WAN_RESIZED = re.compile(r"(encoder|decoder)\.(up|down)_blocks\.\d{1,3}\.(up|down)sampler\.")
_WAN_UP = re.compile(r"(decoder)\.up_blocks\.(\d{1,3})\.(?:resnets\.(\d{1,3})|upsamplers\.0)\.")
_ATTENTION_WEIGHT = re.compile(r"(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


@dataclass(frozen=True)
class KeyMap:
    """Where each of our parameters is in a file: ``sources`` maps our name to the file's.

    ``beside`` maps the names of tensors that stand beside the VAE and may say something of its latents,
    ``between_frames`` those of layers that a picture does not use; where they are tells what a level does to frames.
    ``of_video``: for the network of videos, which uses them, and every temporal tap of a convolution.
    """

    layout: Layout
    sources: Mapping[str, str]
    beside: Mapping[str, str] = field(default_factory=dict)
    between_frames: Mapping[str, str] = field(default_factory=dict)
    of_video: bool = False

    def for_video(self) -> KeyMap:
        """The same for the network of videos."""
        return replace(self, sources={**self.sources, **self.between_frames}, between_frames={}, of_video=True)

    @property
    def is_taesd(self) -> bool:
        return self.layout.startswith("tae")

    @property
    def is_taehv(self) -> bool:
        return self.layout == "taehv"

    @property
    def is_wan(self) -> bool:
        return self.layout.startswith("wan")

    def shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That which a tensor of the file, of ``shape``, has in our network."""
        if self.is_taehv:
            return taehv.shape_of(key, shape)
        if self.of_video and len(shape) == 5:
            return shape[0], shape[1] * shape[2], *shape[3:]
        return _wan_shape(shape) if self.is_wan else ldm_shape(key, shape)

    def view(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """A tensor of the file as our network has it; of a convolution with a temporal axis the last tap.

        For videos it is all taps, those of the earliest frame first: a copy, channels last, as most devices want it.
        """
        if self.is_taehv:
            return taehv.of_a_picture(key, stored)
        shape = self.shape(key, tuple(stored.shape))
        if stored.shape == shape:
            return stored
        if self.of_video and stored.ndim == 5:
            taps_first = stored.transpose(1, 2).reshape(shape)
            return taps_first.contiguous(memory_format=torch.channels_last)
        return stored[:, :, -1] if stored.ndim == 5 else stored.reshape(shape)

    def tensor(self, key: str, stored: torch.Tensor) -> torch.Tensor:
        """As ``view``, and nothing else of ``stored`` is kept for it."""
        view = self.view(key, stored)
        return view.clone() if stored.ndim == 5 or self.is_taehv else view


def layout_of(keys: Iterable[str]) -> Layout | None:
    """The layout of a state dict, recognised by its keys; None when there is no VAE in it."""
    found = map_keys(keys)
    return None if found is None else found.layout


def map_keys(keys: Iterable[str]) -> KeyMap | None:
    """Find the VAE among ``keys``, whatever its layout; None when there is none.

    Everything else (UNet, text encoders, ``loss.``, ``model_ema.``) is left out.
    """
    keys = [key for key in keys if isinstance(key, str)]  # pickles may have others
    prefixes = {match[1] for key in keys if (match := _PREFIX.match(key))} | {""}
    for prefix in sorted(prefixes, key=lambda prefix: (len(prefix), prefix)):
        bare = {_NESTED.sub(r"\1", key[len(prefix) :]): key for key in keys if key.startswith(prefix)}
        own = {key: source for key, source in bare.items() if _VAE_KEY.match(key)}
        beside = {key: bare[key] for key in bare if key not in own and not _UNRELATED.match(key)}
        if found := _map_wan(bare):
            return found
        if any(_LDM_KEY.match(key) for key in bare):
            layout: Layout = "ldm in a checkpoint" if _IN_A_CHECKPOINT.search(prefix) else "ldm"
            return KeyMap(layout, _in_ldm_names(own), beside)
        if any(_DIFFUSERS_KEY.match(key) for key in bare):
            return KeyMap("diffusers", _in_ldm_names(own), beside)
        if found := _map_taesd(bare):
            return found
    return None


def convert_to_ldm(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A VAE's state dict in bare ldm keys, from any layout of an AutoencoderKL; tensors are shared.

    Attention weights stored as linear layers (C, C) become 1x1 convs (C, C, 1, 1). Keys that do not belong to
    the VAE are dropped.

    Raises:
        CheckpointError: when there is no AutoencoderKL in it.
    """
    found = map_keys(state_dict)
    if found is None:
        raise CheckpointError(f"This is {describe_foreign(state_dict)}, not a VAE.")
    if found.is_taesd:
        raise CheckpointError("This is a TAESD, the tiny autoencoder, not a full VAE.")
    if found.is_wan:
        raise CheckpointError("This is the VAE of Qwen-Image or Wan, not an AutoencoderKL.")
    return {key: as_ldm(key, state_dict[source]) for key, source in found.sources.items()}


def as_ldm(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in the shape that it has in the ldm layout."""
    return tensor.reshape(ldm_shape(key, tuple(tensor.shape)))


def ldm_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor has in the ldm layout, where attention weights are those of 1x1 convs."""
    if _ATTENTION_WEIGHT.fullmatch(key) and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)):
        return (*shape[:2], 1, 1)
    return shape


def _in_ldm_names(bare: Mapping[str, str]) -> dict[str, str]:
    """All in the names of ldm, whichever of them are diffusers': of a file that was half converted, a few are."""
    last = max((int(match[1]) for key in bare if (match := _UP_BLOCK.match(key))), default=0)
    sources = {}
    for key, source in bare.items():
        # diffusers numbers the decoder's levels in the order in which they run, ldm by resolution
        renamed = _UP_BLOCK.sub(lambda match: f"decoder.up.{last - int(match[1])}.", key)
        for pattern, replacement in _RENAMES:
            renamed = pattern.sub(replacement, renamed)
        sources[key if renamed in sources else renamed] = source
    return sources


def _wan_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a convolution's last temporal tap, or of a norm's factors without the axis of time."""
    if len(shape) == 5:
        return (*shape[:2], *shape[3:])
    return shape[:3] if len(shape) == 4 and shape[1:] == (1, 1, 1) else shape


def _map_wan(bare: Mapping[str, str]) -> KeyMap | None:
    """Wan's VAE in one of its three layouts."""
    is_own = any(_WAN_KEY.match(key) for key in bare)
    if not is_own and not any(_WAN_DIFFUSERS_KEY.match(key) for key in bare):
        return None
    has_time = any(_TIME.search(key) for key in bare)
    layout: Layout = "wan" if is_own else "wan (diffusers)" if has_time else "wan (2-D)"
    numbered = _wan_numbered(bare)
    sources: dict[str, str] = {}
    between_frames: dict[str, str] = {}
    for key, source in bare.items():
        if not _WAN_TOP.match(key):
            continue
        renamed = numbered(key)
        for pattern, replacement in _WAN_RENAMES:
            renamed = pattern.sub(replacement, renamed)
        (between_frames if _TIME.search(key) else sources)[renamed] = source
    beside = {key: bare[key] for key in bare if not _WAN_TOP.match(key) and not _UNRELATED.match(key)}
    return KeyMap(layout, sources, beside, between_frames)


def _wan_numbered(bare: Mapping[str, str]) -> Callable[[str], str]:
    """How diffusers' blocks are numbered in our names: of Wan 2.1 all layers of a half, of Wan 2.2 those of a level."""
    in_levels = any(_WAN_RESIZED.match(key) for key in bare)
    pattern = _WAN_LEVEL if in_levels else _WAN_UP
    matches = [match for key in bare if (match := pattern.match(key))]
    blocks = {half: 1 + max(int(m[3]) for m in matches if m[3] and m[1] == half) for half in {m[1] for m in matches}}

    def numbered(key: str) -> str:
        if not (match := pattern.match(key)):
            return key
        half, level, at = match[1], int(match[2]), int(match[3]) if match[3] else blocks[match[1]]
        place = f"{level}.layers.{at}" if in_levels else level * (blocks[half] + 1) + at
        return f"{half}.layers.{place}.{key[match.end() :]}"

    return numbered


def _map_taesd(bare: Mapping[str, str]) -> KeyMap | None:
    if any(_TAEHV_KEY.fullmatch(key) for key in bare):
        names = {taehv.our_name(key): source for key, source in bare.items() if key.startswith("decoder.")}
        return KeyMap("taehv", names)
    for layout, pattern in (("taesd", _TAESD_KEY), ("taesd (diffusers)", _TINY_KEY)):
        matches = [(match, source) for key, source in bare.items() if (match := pattern.fullmatch(key))]
        if any(f"{match[2]}.{match[3]}" == _TAESD_BLOCK for match, _ in matches):
            # diffusers' decoder does not count the clamp of the latents as a layer
            shift = {"decoder": 1 if layout == "taesd (diffusers)" else 0, "encoder": 0}
            sources = {f"{m[1]}.{int(m[2]) + shift[m[1]]}.{m[3]}": source for m, source in matches}
            return KeyMap(cast(Layout, layout), sources)
    if _TAESD_BLOCK in bare and ("0.weight" in bare) != ("1.weight" in bare):
        half = "encoder" if "0.weight" in bare else "decoder"
        return KeyMap("taesd", {f"{half}.{key}": bare[key] for key in bare if _TAESD_BARE.fullmatch(key)})
    return None
