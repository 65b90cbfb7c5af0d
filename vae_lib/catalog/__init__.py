"""What is known beforehand: the families of VAEs with their latents, and the files that people use."""

from vae_lib.catalog.families import (
    FAMILIES,
    families_of,
    families_of_diffusion_model,
    family_by_factors,
    family_in_text,
    family_of_space,
)
from vae_lib.catalog.family import Architecture, Family, Packing, Statistics
from vae_lib.catalog.files import load_catalog
from vae_lib.catalog.space import LatentSpace
