"""Weights files: read safely, in every layout in which VAEs are published, and told apart."""

from vae_lib.catalog import FAMILIES, Family, LatentSpace, family_of_space
from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.evidence import Certainty, KnownFile, state_beside
from vae_lib.checkpoints.header import Header, TensorInfo
from vae_lib.checkpoints.identify import Identity, Kind, identify
from vae_lib.checkpoints.latents import check_channels, check_finite, load_latents, space_in
from vae_lib.checkpoints.layouts import Layout, convert_to_ldm, layout_of
from vae_lib.checkpoints.load import LoadedVAE, load_vae
from vae_lib.checkpoints.network import VAE, describe
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
    "LatentSpace",
    "Layout",
    "LoadedVAE",
    "TensorInfo",
    "check_channels",
    "check_finite",
    "convert_to_ldm",
    "describe",
    "family_of_space",
    "identify",
    "layout_of",
    "load_latents",
    "load_vae",
    "open_weights",
    "read_header",
    "save_safetensors",
    "sha256_of",
    "space_in",
    "state_beside",
]
