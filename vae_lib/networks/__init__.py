"""The networks as plain, readable modules; ``vae_lib.decode`` runs the same weights in less memory."""

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
from vae_lib.networks.taesd import TAESD

__all__ = [
    "TAESD",
    "AttnBlock",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "Decoder",
    "DownLevel",
    "Downsample",
    "Encoder",
    "MidBlock",
    "ResnetBlock",
    "UpLevel",
    "Upsample",
    "assign",
]
