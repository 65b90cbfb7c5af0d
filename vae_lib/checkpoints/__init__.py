"""Weights files: read safely, in every layout in which VAEs are published, and told apart."""

from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.families import FAMILIES, Family
from vae_lib.checkpoints.header import Header, TensorInfo
from vae_lib.checkpoints.identify import Certainty, Identity, Kind, KnownFile, identify
from vae_lib.checkpoints.latents import check_finite, load_latents
from vae_lib.checkpoints.layouts import Layout, convert_to_ldm, layout_of
from vae_lib.checkpoints.load import VAE, LoadedVAE, load_vae
from vae_lib.checkpoints.source import open_weights, read_header
from vae_lib.checkpoints.write import save_safetensors

__all__ = [
    "FAMILIES",
    "VAE",
    "Certainty",
    "Family",
    "Header",
    "Identity",
    "Kind",
    "KnownFile",
    "Layout",
    "LoadedVAE",
    "TensorInfo",
    "check_finite",
    "convert_to_ldm",
    "identify",
    "layout_of",
    "load_latents",
    "load_vae",
    "open_weights",
    "read_header",
    "save_safetensors",
    "sha256_of",
]
