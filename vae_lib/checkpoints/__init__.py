"""Weights files: read safely, in every layout in which VAEs are published, and told apart."""

from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.families import FAMILIES, Family
from vae_lib.checkpoints.header import Header, TensorInfo
from vae_lib.checkpoints.identify import Certainty, Identity, Kind, KnownFile, identify
from vae_lib.checkpoints.layouts import Layout, convert_to_ldm, layout_of
from vae_lib.checkpoints.load import VAE, LoadedVAE, load_vae
from vae_lib.checkpoints.source import open_weights, read_header

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
    "convert_to_ldm",
    "identify",
    "layout_of",
    "load_vae",
    "open_weights",
    "read_header",
    "sha256_of",
]
