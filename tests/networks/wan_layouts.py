"""Wan 2.1's weights as they are published: our names and shapes turned into those of the three kinds of file."""

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


def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ``Wan2.1_VAE.pth`` and its copies (``qwen_image_vae.safetensors``, ``wan_2.1_vae.safetensors``)."""
    return _with_time({_renamed(name, _OWN): (name, tensor) for name, tensor in weights.items()})


def diffusers_names(weights: dict[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """As diffusers' AutoencoderKLQwenImage and AutoencoderKLWan."""
    return _with_time({_diffusers(name, config): (name, tensor) for name, tensor in weights.items()})


def names_of_2d(weights: dict[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """As the conversion Qwen2D: diffusers' names, without the axis of time."""
    return {_diffusers(name, config): tensor for name, tensor in weights.items()}


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _diffusers(name: str, config: WanConfig) -> str:
    if match := re.match(r"decoder\.layers\.(\d+)\.(conv\.)?(.*)", name):
        level, at = divmod(int(match[1]), config.num_res_blocks + 2)
        place = "upsamplers.0.resample.1" if match[2] else f"resnets.{at}"
        name = f"decoder.up_blocks.{level}.{place}.{match[3]}"
    return _renamed(name, _DIFFUSERS)


def _with_time(named: dict[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Convolutions with two taps before the last one, which must not matter, and a ``time_conv`` at each resizing."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, (ours, tensor) in named.items():
        flat = _ATTENTION_OR_RESIZE.search(ours) is not None
        if tensor.ndim == 4 and not flat:
            taps = 1 if tensor.shape[-1] == 1 else 3
            shape = (*tensor.shape[:2], taps, *tensor.shape[2:])
            noise = torch.randn(shape, generator=generator).to(tensor.dtype)
            noise[:, :, -1] = tensor
            tensor = noise
        elif name.endswith(".gamma") and not flat:
            tensor = tensor[..., None]
        weights[name] = tensor.clone()
        if name.endswith("resample.1.bias"):
            channels = len(tensor)
            place = name.replace("resample.1.bias", "time_conv")
            weights[f"{place}.weight"] = torch.randn(channels, channels, 3, 1, 1, generator=generator)
            weights[f"{place}.bias"] = torch.randn(channels, generator=generator)
    return weights
