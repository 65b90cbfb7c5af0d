"""Weights files: read safely, in every layout in which VAEs are published, and identified."""

from vae_lib.catalog import FAMILIES, Family, LatentSpace, family_of_space
from vae_lib.catalog.names import WEIGHTS_EXTENSIONS
from vae_lib.checkpoints.config_file import state_beside
from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.identify import Identity, identify
from vae_lib.checkpoints.latents import check_channels, check_finite, load_latents, space_in
from vae_lib.checkpoints.layouts import convert_to_ldm, layout_of
from vae_lib.checkpoints.load import LoadedVAE, load_vae
from vae_lib.checkpoints.meeting import Meeting, OpenSpace
from vae_lib.checkpoints.network import describe
from vae_lib.checkpoints.source import open_weights, read_header
from vae_lib.checkpoints.write import save_safetensors
