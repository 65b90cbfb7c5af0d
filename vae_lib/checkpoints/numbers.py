"""Reading a VAE's tensors, and refusing those that hold no numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lib.checkpoints.header import quote
from vae_lib.checkpoints.network import Described
from vae_lib.checkpoints.source import WeightsFile
from vae_lib.errors import CheckpointError


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
    read_statistics(weights, described)
    for source in described.keys.sources.values():
        read_numbers(weights, source)


def read_statistics(weights: WeightsFile, described: Described) -> dict[str, Tensor]:
    """The tensors beside the VAE that say how its latents are normalised, by name; none where nothing is packed.

    Raises:
        CheckpointError: as ``read_numbers``, and where a variance is negative.
    """
    packing = described.packing
    if packing is None:
        return {}
    found = {key: read_numbers(weights, described.keys.beside[key]) for key in (packing.mean, packing.variance)}
    if bool((found[packing.variance] < 0).any()):
        raise CheckpointError(
            f"{weights.header.path.name} is damaged: {quote(packing.variance)} holds negative numbers; use another "
            "copy of it."
        )
    return found


def all_finite(tensor: Tensor) -> bool:
    # One pass: NaN and infinity always reach the sum. Only a sum that overflows needs a look at each.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())
