"""Small weights for both hosts: random, the same on every machine, and tame (pictures stay within [-1, 1])."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vae_lib.networks import TAESD, AutoencoderKL, AutoencoderKLConfig

CONFIG = AutoencoderKLConfig(ch=32, num_res_blocks=1, use_quant_conv=True, use_post_quant_conv=True)


def random_weights(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Each tensor from a generator of its own, seeded by its name: the order does not matter."""
    weights = {}
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = values / shape[1:].numel() ** 0.5
        else:
            weights[name] = 0.02 * values + (1.0 if name.endswith("weight") else 0.0)
    return weights


def vae_sd3(seed: int = 1) -> dict[str, Tensor]:
    """The same for SD3: 16 latent channels, no 1x1 convolutions. Its posterior has a spread: random numbers count."""
    config = replace(CONFIG, z_channels=16, use_quant_conv=False, use_post_quant_conv=False)
    shapes = {name: value.shape for name, value in AutoencoderKL(config).state_dict().items()}
    weights = random_weights(shapes, seed)
    weights["decoder.conv_out.weight"] *= 0.5
    weights["encoder.conv_out.weight"][16:] = 0.0
    weights["encoder.conv_out.bias"][16:] = -4.0
    return weights


def vae(seed: int = 1) -> dict[str, Tensor]:
    """A VAE in the ldm layout. Its posterior has next to no spread, and its latents are of SD1's size."""
    shapes = {name: value.shape for name, value in AutoencoderKL(CONFIG).state_dict().items()}
    weights = random_weights(shapes, seed)
    weights["decoder.conv_out.weight"] *= 0.5
    weights["encoder.conv_out.weight"] *= 4.0
    weights["quant_conv.weight"] = torch.eye(8)[:, :, None, None].clone()
    weights["quant_conv.weight"][4:] = 0.0
    weights["quant_conv.bias"] = torch.tensor([0.0] * 4 + [-20.0] * 4)
    return weights


def save_vae(path: Path, weights: Mapping[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    return path


def as_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same VAE under diffusers' names, told by diffusers' own converter from the ldm layout."""
    from diffusers import AutoencoderKL as Diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    names = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    model = Diffusers(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=names[0],
        up_block_types=names[1],
        layers_per_block=1,
        latent_channels=4,
    )
    prefixed = {f"first_stage_model.{name}": value for name, value in weights.items()}
    model.load_state_dict(convert_ldm_vae_checkpoint(prefixed, model.config))
    return model.state_dict()


def save_taesd(folder: Path) -> None:
    """TAESD for SD1 in the two files that the host looks for, in the older .pth form that every host reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = TAESD(4).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(7)
    for half, example in (
        ("encoder", torch.rand(1, 3, 64, 64, generator=random)),
        ("decoder", torch.randn(1, 4, 8, 8, generator=random)),
    ):
        network = getattr(tiny, half)
        network.load_state_dict(random_weights({k: v.shape for k, v in network.state_dict().items()}, 7))
        last = network[-1]
        last.weight *= (0.2 if half == "decoder" else 1.0) / network(example).std()
        last.bias[:] = 0.5 if half == "decoder" else 0.0
        torch.save(network.state_dict(), folder / f"taesd_{half}.pth", _use_new_zipfile_serialization=False)
