"""The networks as plain, readable modules; ``vae_lib.engine`` runs the same weights in less memory."""

from vae_lib.networks.assign import assign
from vae_lib.networks.autoencoder_kl import (
    AttnBlock,
    AutoencoderKL,
    Decoder,
    DownLevel,
    Downsample,
    Encoder,
    MidBlock,
    ResnetBlock,
    UpLevel,
    Upsample,
)
from vae_lib.networks.config import AutoencoderKLConfig
from vae_lib.networks.known import STANDARD, build, recognise, sample_network
from vae_lib.networks.network import Architecture, Network
from vae_lib.networks.taesd import TAESD

__all__ = [
    "STANDARD",
    "TAESD",
    "Architecture",
    "AttnBlock",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "Decoder",
    "DownLevel",
    "Downsample",
    "Encoder",
    "MidBlock",
    "Network",
    "ResnetBlock",
    "UpLevel",
    "Upsample",
    "assign",
    "build",
    "recognise",
    "sample_network",
]
