"""Exact decoding and encoding in bands: passes over a picture, run on arrays that are real or only counted."""

from vae_lib.engine.batch import decode, encode_moments
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.padding import Edge, Padding
from vae_lib.engine.passes import Tiling
