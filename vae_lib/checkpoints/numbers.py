"""Reading a VAE's tensors, and refusing those that hold no numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_lib.catalog import FAMILIES
from vae_lib.checkpoints.header import quote
from vae_lib.checkpoints.network import Described
from vae_lib.checkpoints.source import WeightsFile
from vae_lib.errors import CheckpointError

FACTOR = "scale_factor"  # ldm keeps it in a checkpoint where it was measured at the beginning of training


def read_numbers(weights: WeightsFile, source: str) -> Tensor:
    """One tensor of a file, on the CPU; fp8 becomes fp16, because few operations know it.

    Raises:
        CheckpointError: when it cannot be read, or holds NaN or infinite numbers.
    """
    stored = weights.read(source)
    if stored.element_size() == 1:
        stored = stored.to(torch.float16)
    if not all_finite(stored):
        raise CheckpointError(
            f"{weights.header.path.name} is damaged: {quote(source)} holds NaN or infinite numbers; use another copy "
            "of it."
        )
    return stored


def check_numbers(weights: WeightsFile, described: Described) -> None:
    """Read all of a VAE, and keep nothing of it.

    Raises:
        CheckpointError: as ``read_numbers``.
    """
    for source in described.keys.sources.values():
        read_numbers(weights, source)


def read_statistics(weights: WeightsFile, described: Described) -> dict[str, Tensor]:
    """The tensors beside the VAE that say how its latents are normalised, by name; empty where there are none.

    Raises:
        CheckpointError: as ``read_numbers``, where one has not a number for each channel, and where no latents can be
            divided by them.
    """
    found: dict[str, Tensor] = {}
    if (packing := described.packing) is not None:
        found = {key: read_numbers(weights, described.keys.beside[key]) for key in (packing.mean, packing.variance)}
        if bool((found[packing.variance] < 0).any()):
            raise CheckpointError(_damaged(weights, packing.variance, "negative numbers"))
    tensors = weights.header.tensors
    for family in filter(described.may_be_of, FAMILIES.values()):
        own = family.statistics
        if own is None or not {own.mean, own.deviation} <= tensors.keys():
            continue
        found |= {key: read_numbers(weights, key) for key in (own.mean, own.deviation)}
        channels = family.latent_channels
        if wrong := [key for key in (own.mean, own.deviation) if found[key].numel() != channels]:
            raise CheckpointError(_damaged(weights, wrong[0], f"not {channels} numbers"))
        if bool((found[own.deviation] <= 0).any()):
            raise CheckpointError(_damaged(weights, own.deviation, "numbers that are not above zero"))
    if (factor := tensors.get(FACTOR)) is not None and math.prod(factor.shape) == 1:
        found[FACTOR] = read_numbers(weights, FACTOR)
    return found


def _damaged(weights: WeightsFile, name: str, held: str) -> str:
    return f"{weights.header.path.name} is damaged: {quote(name)} holds {held}; use another copy of it."


def all_finite(tensor: Tensor) -> bool:
    # One pass: NaN and infinity always reach the sum. Only a sum that overflows needs a look at each.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())
