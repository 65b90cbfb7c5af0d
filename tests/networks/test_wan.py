"""Wan 2.1's VAE for one picture against the published network: AutoencoderKLQwenImage of diffusers, time and all."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.networks.small import FP32, FP64, WAN, distance, images, latents_for, network, weights_of
from tests.networks.wan_layouts import diffusers_names
from vae_lib.errors import CheckpointError
from vae_lib.networks import Downsample, WanConfig, WanVAE, assign, recognise

# widths of diffusers are multiples of the first
DIFFUSERS = WanConfig(widths=(8, 16, 32, 32), num_res_blocks=2, z_channels=4)


def reference(dtype: torch.dtype) -> Any:
    """diffusers' network with the weights of ours."""
    from diffusers import AutoencoderKLQwenImage

    theirs = AutoencoderKLQwenImage(base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    given = diffusers_names(weights_of(network(DIFFUSERS)), DIFFUSERS)
    wanted = theirs.state_dict()
    used = {name: tensor for name, tensor in given.items() if "time_conv" not in name}
    missing = {name for name in wanted if name not in used}
    assert all("time_conv" in name for name in missing), missing
    theirs.load_state_dict({**wanted, **used})
    for module in theirs.modules():
        if type(module).__name__ == "QwenImageUpsample":  # theirs rounds to float32
            module.forward = functools.partial(nn.Upsample.forward, module)
    return theirs.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "allowed"), [(FP64, 1e-10), (FP32, 1e-5)], ids=str)
def test_it_is_the_published_network_for_one_picture(dtype: torch.dtype, allowed: float) -> None:
    theirs, ours = reference(dtype), network(DIFFUSERS, dtype)
    z = latents_for(DIFFUSERS, 3, 5, batch=2).to(dtype)
    with torch.inference_mode():
        wanted = theirs.decode(z[:, :, None]).sample[:, :, 0]
        assert distance(ours.decode(z).clamp(-1, 1), wanted) < allowed
        picture = images(24, 40, batch=2).to(dtype)
        posterior = theirs.encode(picture[:, :, None]).latent_dist
        mean, log_variance = ours.encode_moments(picture)
        assert distance(mean, posterior.mean[:, :, 0]) < allowed
        assert distance(log_variance, posterior.logvar[:, :, 0]) < allowed


def test_the_usual_one_is_the_published_one() -> None:
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        ours, theirs = WanVAE(WanConfig()), AutoencoderKLQwenImage()
    assert (ours.latent_channels, ours.downscale) == (16, 8)
    used = {name: tensor for name, tensor in theirs.state_dict().items() if "time_conv" not in name}
    last_taps = [tensor[:, :, -1] if tensor.ndim == 5 else tensor for tensor in used.values()]
    assert sum(tap.numel() for tap in last_taps) == sum(weight.numel() for weight in ours.parameters())


@pytest.mark.parametrize(
    "config",
    [
        WanConfig(),
        WAN,
        replace(WAN, has_encoder=False),
        replace(WAN, has_decoder=False),
        WanConfig((6,), 1, 3, 1, 4),
        replace(WAN, has_encoder=False, use_post_quant_conv=False),
        replace(WAN, has_decoder=False, use_quant_conv=False),
        WanConfig((4, 6), 3, 1),
    ],
    ids=str,
)
def test_recognised_by_its_weights(config: WanConfig) -> None:
    with torch.device("meta"):
        weights = WanVAE(config).state_dict()
    found = recognise({name: tensor.shape for name, tensor in weights.items()})
    assert found.config == config
    assert all(parameter.is_meta for parameter in found.parameters())
    assign(found, weights)


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ("encoder.conv_in.weight", "incomplete"),
        ("decoder.conv_out.weight", "incomplete"),
        ("encoder.layers.0.conv1.weight", "layers of its encoder are missing"),
        ("decoder.layers.3.conv.weight", "incomplete"),
        ("decoder.layers.13.conv1.weight", "incomplete"),
        ("encoder.layers.10.conv1.weight", "incomplete"),
    ],
)
def test_incomplete_weights(gone: str, problem: str) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(network(WAN)).items() if name != gone}
    with pytest.raises(CheckpointError, match=problem):
        recognise(shapes)


def test_halves_of_two_networks() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights_of(network(WAN)).items()}
    other = {
        name: tuple(tensor.shape)
        for name, tensor in weights_of(network(replace(WAN, widths=(8, 16, 24, 24)))).items()
        if name.startswith("encoder.")
    }
    with pytest.raises(CheckpointError, match="do not belong together"):
        recognise({**shapes, **other})
    with pytest.raises(CheckpointError, match="damaged"):
        recognise({**shapes, "encoder.conv_in.weight": (8, 3)})


def test_halves_that_are_not_there() -> None:
    decoder, encoder = network(replace(WAN, has_encoder=False)), network(replace(WAN, has_decoder=False))
    with pytest.raises(CheckpointError, match="only a decoder"):
        decoder.encode_moments(images(8, 8))
    with pytest.raises(CheckpointError, match="only an encoder"):
        encoder.decode(latents_for(WAN, 1, 1))
    assert encoder.encoder is not None
    assert sum(isinstance(layer, Downsample) for layer in encoder.encoder.layers) == 3
