"""Wan's weights as they are published: our names and shapes turned into those of the three kinds of file."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vae_lib.networks import WanConfig

_ATTENTION_OR_RESIZE = re.compile(r"attn_1|layers\.\d+\.conv\.")  # two-dimensional in every layout

_OWN = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"coder\.conv_in\.", "coder.conv1."),
    (r"\.mid\.block_1\.", ".middle.0."),
    (r"\.mid\.attn_1\.", ".middle.1."),
    (r"\.mid\.block_2\.", ".middle.2."),
    (r"\.layers\.(\d+)\.conv\.", r".layers.\1.resample.1."),
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.(?!.*conv1)(?<=[0-9]\.conv1\.)", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"encoder\.layers\.", "encoder.downsamples."),
    (r"decoder\.layers\.", "decoder.upsamples."),
    (r"(downsamples|upsamples)\.(\d+)\.layers\.", r"\1.\2.\1."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
)
_DIFFUSERS = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"encoder\.layers\.(\d+)\.conv\.", r"encoder.layers.\1.resample.1."),
    (r"encoder\.layers\.", "encoder.down_blocks."),
)


def own_names(weights: dict[str, Tensor], config: WanConfig | None = None, taps: int = 3) -> dict[str, Tensor]:
    """As ``Wan2.1_VAE.pth`` and its copies (``qwen_image_vae.safetensors``, ``wan_2.1_vae.safetensors``).

    ``config``: of Wan 2.2's kind (``Wan2.2_VAE.pth``), and of Qwen-Image 2.1's, whose convolutions have one tap.
    """
    return _with_time({_renamed(name, _OWN): (name, tensor) for name, tensor in weights.items()}, config, taps)


def diffusers_names(weights: dict[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """As diffusers' AutoencoderKLQwenImage and AutoencoderKLWan."""
    return _with_time({_diffusers(name, config): (name, tensor) for name, tensor in weights.items()}, config)


def names_of_2d(weights: dict[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """As the conversion Qwen2D: diffusers' names, without the axis of time."""
    return {_diffusers(name, config): tensor for name, tensor in weights.items()}


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _diffusers(name: str, config: WanConfig) -> str:
    if match := re.match(r"(en|de)coder\.layers\.(\d+)\.layers\.(?:\d+\.(conv)|(\d+))\.(.*)", name):
        side = "up" if match[1] == "de" else "down"
        place = f"{side}sampler.resample.1" if match[3] else f"resnets.{match[4]}"
        name = f"{match[1]}coder.{side}_blocks.{match[2]}.{place}.{match[5]}"
    elif match := re.match(r"decoder\.layers\.(\d+)\.(conv\.)?(.*)", name):
        level, at = divmod(int(match[1]), config.num_res_blocks + 2)
        place = "upsamplers.0.resample.1" if match[2] else f"resnets.{at}"
        name = f"decoder.up_blocks.{level}.{place}.{match[3]}"
    return _renamed(name, _DIFFUSERS)


def _doubles_frames(name: str, config: WanConfig | None) -> bool:
    """Whether a layer that resizes has a ``time_conv``: in Wan 2.1 none that we would have to know of."""
    match = re.match(r"(en|de)coder\.layers\.(\d+)\.layers\.", name)
    if match is None or config is None or config.frames is None:
        return True
    return config.frames[int(match[2]) if match[1] == "en" else -1 - int(match[2])] == 2


def _with_time(
    named: dict[str, tuple[str, Tensor]], config: WanConfig | None = None, most_taps: int = 3
) -> dict[str, Tensor]:
    """Convolutions with two taps before the last one, which must not matter, and a ``time_conv`` between frames."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, (ours, tensor) in named.items():
        flat = _ATTENTION_OR_RESIZE.search(ours) is not None
        if tensor.ndim == 4 and not flat:
            taps = 1 if tensor.shape[-1] == 1 else most_taps
            shape = (*tensor.shape[:2], taps, *tensor.shape[2:])
            noise = (torch.randn(shape, generator=generator) * tensor.float().std()).to(tensor.dtype)
            noise[:, :, -1] = tensor
            tensor = noise
        elif name.endswith(".gamma") and not flat:
            tensor = tensor[..., None]
        weights[name] = tensor.clone()
        if name.endswith("resample.1.weight") and _doubles_frames(ours, config):
            channels = tensor.shape[1]
            made = 2 * channels if name.startswith("decoder") else channels
            place = name.replace("resample.1.weight", "time_conv")
            weight = torch.randn(made, channels, most_taps, 1, 1, generator=generator)
            weights[f"{place}.weight"] = weight / channels**0.5
            weights[f"{place}.bias"] = torch.randn(made, generator=generator)
    return weights
