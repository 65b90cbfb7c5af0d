"""What is known beforehand: the families of VAEs with their latents, and the files that people use."""

from vae_lib.catalog.families import (
    FAMILIES,
    families_of,
    family_by_factors,
    family_in_text,
    family_of_diffusion_model,
    family_of_space,
    known_family,
)
from vae_lib.catalog.family import Family, Packing
from vae_lib.catalog.files import Catalog, CatalogEntry, KnownFile, load_catalog
from vae_lib.catalog.space import LatentSpace

__all__ = [
    "FAMILIES",
    "Catalog",
    "CatalogEntry",
    "Family",
    "KnownFile",
    "LatentSpace",
    "Packing",
    "families_of",
    "family_by_factors",
    "family_in_text",
    "family_of_diffusion_model",
    "family_of_space",
    "known_family",
    "load_catalog",
]
