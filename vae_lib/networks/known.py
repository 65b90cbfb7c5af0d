"""The architectures that there are: recognised by their weights, built, and those that stand for many files."""

from __future__ import annotations

from dataclasses import replace

import torch

from vae_lib.errors import CheckpointError
from vae_lib.networks.autoencoder_kl import AutoencoderKL
from vae_lib.networks.config import NORM_GROUPS, AutoencoderKLConfig, Shapes
from vae_lib.networks.network import Architecture, Network
from vae_lib.networks.wan import WanVAE
from vae_lib.networks.wan_config import WanConfig

_NETWORKS: dict[type, type] = {AutoencoderKLConfig: AutoencoderKL, WanConfig: WanVAE}

# By the family whose shape it is.
SHAPES: dict[str, AutoencoderKLConfig | WanConfig] = {
    "sd": AutoencoderKLConfig(),
    "flux": AutoencoderKLConfig(z_channels=16, embed_dim=16, use_quant_conv=False, use_post_quant_conv=False),
    "qwen-image": WanConfig(),
    "wan-2.2": WanConfig((160, 320, 640, 640), 2, 48, decoder_ch=256, frames=(1, 2, 2), patch=2),
    "qwen-image-2.1": WanConfig((96, 192, 384, 768, 768), 2, 64, 4, 4, decoder_ch=144, frames=(1, 2, 2, 2)),
}
# What a decode takes is the same for all VAEs of a shape.
STANDARD: dict[str, Architecture] = {
    "Any SD1, SD2 or SDXL VAE": SHAPES["sd"],
    "Any SD3 or FLUX.1 VAE": SHAPES["flux"],
    "Any VAE of Qwen-Image or Wan 2.1": SHAPES["qwen-image"],
    "The VAE of Wan 2.2 5B": SHAPES["wan-2.2"],
}
# Those of videos, by the same names: in both of Wan's the two steps nearest to the latents are steps in time, too.
STANDARD_VIDEO: dict[str, Architecture] = {
    name: replace(config, times=(1, 2, 2)) for name, config in STANDARD.items() if isinstance(config, WanConfig)
}


def recognise(shapes: Shapes, norm_groups: int = NORM_GROUPS) -> Network:
    """The network of ``key -> shape`` in the names that it has here, on the meta device.

    Args:
        norm_groups: of AutoencoderKL's norms, whose weights do not tell.

    Raises:
        CheckpointError: when it is none that we have.
    """
    is_wan = WanConfig.is_in(shapes)
    config = WanConfig.from_state_dict(shapes) if is_wan else AutoencoderKLConfig.from_state_dict(shapes, norm_groups)
    with torch.device("meta"):
        return build(config)


def build(architecture: Architecture) -> Network:
    """A network on the device that is PyTorch's default now; none of its weights are set."""
    network: Network = _NETWORKS[type(architecture)](architecture)
    return network


def of_video(config: Architecture, shapes: Shapes) -> Network:
    """The network of videos beside a picture's of that ``config``, on the meta device.

    Args:
        shapes: of its weights, with the layers between frames and all temporal taps.

    Raises:
        CheckpointError: when the VAE has none.
    """
    if not isinstance(config, WanConfig):
        raise CheckpointError("This is a VAE of pictures, so it cannot decode or encode videos; use Wan's.")
    with torch.device("meta"):
        return build(config.for_video(shapes))


def sample_network(half: str, shape: str = "sd") -> Network:
    """Only the "encoder" or the "decoder" of one of ``SHAPES``, with random weights: on the CPU, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encodes = half == "encoder"
        return build(replace(SHAPES[shape], has_encoder=encodes, has_decoder=not encodes)).eval().requires_grad_(False)
