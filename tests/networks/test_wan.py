"""Wan's VAE for one picture against the published networks: AutoencoderKLQwenImage and AutoencoderKLWan of diffusers,
time and all."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.networks.small import FP32, FP64, QWEN21, WAN, WAN22, distance, images, latents_for, network, weights_of
from tests.networks.wan_layouts import diffusers_names, own_names
from vae_lib.catalog.files import load_catalog
from vae_lib.errors import CheckpointError
from vae_lib.networks import SHAPES, Downsample, WanConfig, WanVAE, assign, recognise

# widths of diffusers are multiples of the first
DIFFUSERS = WanConfig(widths=(8, 16, 32, 32), num_res_blocks=2, z_channels=4)
DIFFUSERS_22 = WanConfig((8, 16, 32, 32), 2, 4, decoder_ch=12, frames=(1, 2, 2), patch=2)
# of Qwen-Image 2.1's kind, for which diffusers has no class of its own
DIFFUSERS_21 = WanConfig((4, 8, 16, 32, 32), 2, 4, 4, 4, decoder_ch=8, frames=(1, 2, 2, 2))


def reference(dtype: torch.dtype, config: WanConfig) -> Any:
    """diffusers' network with the weights of ours."""
    from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan

    shape = {"base_dim": config.widths[0], "z_dim": 4, "num_res_blocks": 2}
    shape["dim_mult"] = [width // config.widths[0] for width in config.widths]
    if config.frames is None:
        theirs = AutoencoderKLQwenImage(**shape)
    else:
        channels = 12 if config.patch == 2 else 4
        theirs = AutoencoderKLWan(
            **shape,
            decoder_base_dim=config.decoder_ch,
            temperal_downsample=[frames == 2 for frames in config.frames],
            is_residual=True,
            in_channels=channels,
            out_channels=channels,
            patch_size=config.patch,
        )
    given = diffusers_names(weights_of(network(config)), config)
    wanted = theirs.state_dict()
    used = {name: tensor for name, tensor in given.items() if "time_conv" not in name}
    missing = {name for name in wanted if name not in used}
    assert all("time_conv" in name for name in missing), missing
    theirs.load_state_dict({**wanted, **used})
    for module in theirs.modules():
        if type(module).__name__ in ("QwenImageUpsample", "WanUpsample"):  # theirs rounds to float32
            module.forward = functools.partial(nn.Upsample.forward, module)
    return theirs.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize(("dtype", "allowed"), [(FP64, 1e-10), (FP32, 1e-5)], ids=str)
@pytest.mark.parametrize("config", [DIFFUSERS, DIFFUSERS_22, DIFFUSERS_21], ids=["2.1", "2.2", "Qwen-Image 2.1"])
def test_it_is_the_published_network_for_one_picture(config: WanConfig, dtype: torch.dtype, allowed: float) -> None:
    theirs, ours = reference(dtype, config), network(config, dtype)
    z = latents_for(config, 3, 5, batch=2).to(dtype)
    with torch.inference_mode():
        wanted = theirs.decode(z[:, :, None]).sample[:, :, 0]
        assert distance(ours.decode(z).clamp(-1, 1), wanted) < allowed
        scale = config.downscale
        picture = images(3 * scale, 5 * scale, batch=2, channels=config.in_channels).to(dtype)
        posterior = theirs.encode(picture[:, :, None]).latent_dist
        mean, log_variance = ours.encode_moments(picture)
        assert distance(mean, posterior.mean[:, :, 0]) < allowed
        assert distance(log_variance, posterior.logvar[:, :, 0]) < allowed


def shapes_of(weights: dict[str, Tensor], config: WanConfig) -> dict[str, tuple[int, ...]]:
    """With those of the layers between frames, which say what Wan 2.2's shortcuts do."""
    halves = {"encoder": config.frames or (), "decoder": (config.frames or ())[::-1]}
    between = {
        f"{half}.layers.{level}.layers.9.time_conv.weight": (1,)
        for half, frames in halves.items()
        for level, count in enumerate(frames)
        if count == 2 and any(name.startswith(half) for name in weights)
    }
    return {name: tuple(tensor.shape) for name, tensor in weights.items()} | between


@pytest.mark.parametrize("changed", [(8, 4), (4, 12)])
def test_a_shortcut_that_nobody_has_published(changed: tuple[int, int]) -> None:
    channels, width = changed
    with pytest.raises(CheckpointError, match=f"from {channels} to {width} channels, around which no shortcut"):
        WanVAE(WanConfig((channels, width, width), frames=(1, 1)))


@pytest.mark.parametrize(("shape", "taps"), [("wan-2.2", 3), ("qwen-image-2.1", 1)])
def test_the_usual_ones_of_wan_22s_kind_fill_the_published_files(shape: str, taps: int) -> None:
    """In bf16, but for the header."""
    config, published = SHAPES[shape], load_catalog().by_id(f"{shape}-vae")
    assert isinstance(config, WanConfig)
    assert published is not None
    assert published.size is not None
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in WanVAE(config).state_dict().items()}
    weights = own_names({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, config, taps)
    assert 0 < published.size - 2 * sum(tensor.numel() for tensor in weights.values()) < 30_000


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
        WAN22,
        QWEN21,
        replace(WAN22, has_encoder=False, widths=(6, 12, 24, 24), decoder_ch=None),
        replace(WAN22, has_decoder=False, decoder_ch=None),
    ],
    ids=str,
)
def test_recognised_by_its_weights(config: WanConfig) -> None:
    with torch.device("meta"):
        weights = WanVAE(config).state_dict()
    found = recognise(shapes_of(weights, config))
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
