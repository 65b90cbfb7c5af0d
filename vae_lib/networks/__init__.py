"""The networks as plain, readable modules; ``vae_lib.engine`` runs the same weights in less memory."""

from vae_lib.networks.assign import assign
from vae_lib.networks.autoencoder_kl import (
    AttnBlock,
    AutoencoderKL,
    DownLevel,
    UpLevel,
)
from vae_lib.networks.config import AutoencoderKLConfig
from vae_lib.networks.known import SHAPES, STANDARD, STANDARD_VIDEO, build, of_video, recognise, sample_network
from vae_lib.networks.network import Architecture, Network, frames_of, latents_of, video_batch
from vae_lib.networks.parts import (
    ChannelNorm,
    Downsample,
    MidBlock,
    Norm,
    ResnetBlock,
    Upsample,
    in_patches,
    out_of_patches,
)
from vae_lib.networks.taesd import TAESD
from vae_lib.networks.wan import PackedAttention, WanVAE
from vae_lib.networks.wan_config import WanConfig
from vae_lib.networks.wan_levels import Averaged, Level, Repeated
