"""From a file to a network that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints.header import quote
from vae_lib.checkpoints.identify import Identity, identify_described
from vae_lib.checkpoints.network import VAE, Described, describe
from vae_lib.checkpoints.numbers import all_finite, read_numbers, read_statistics
from vae_lib.checkpoints.source import WeightsFile, open_weights
from vae_lib.errors import CheckpointError
from vae_lib.files import PathLike
from vae_lib.networks import TAESD, Network, assign

HASH_AT_MOST_BYTES = 1 << 30  # whole checkpoints are larger, and no catalog lists them as VAEs


@dataclass(frozen=True)
class LoadedVAE:
    """A network in evaluation mode, without gradients, and what its file is.

    ``space`` is the way between the sampler's latents and the network's, None where the file leaves it open.
    """

    model: VAE
    identity: Identity
    space: LatentSpace | None

    @property
    def exact(self) -> Network | None:
        """The network, if it is a full VAE."""
        return None if isinstance(self.model, TAESD) else self.model

    @property
    def tiny(self) -> TAESD | None:
        """The network, if it is a TAESD."""
        return self.model if isinstance(self.model, TAESD) else None


def load_vae(
    path: PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    kind: Literal["VAE", "TAESD"] | None = None,
    hash_file: bool | None = None,
) -> LoadedVAE:
    """Load the VAE of a file, and nothing else of it.

    Args:
        dtype: float dtype of the weights; by default that of the file (the widest, if it mixes them). fp8
            becomes float16 and float64 becomes float32, because convolutions want that.
        kind: refuse a file of the other kind.
        hash_file: compute the SHA-256 and ask the catalog for it; by default for files of up to 1 GiB.

    Raises:
        UnknownVAE: when it holds a VAE of a kind that we have no network for.
        CheckpointError: when the file cannot be read, is damaged or unsafe, or holds no VAE.
    """
    with open_weights(path) as weights:
        described = describe(weights.header)
        name = described.header.path.name
        if kind is not None and described.keys.is_taesd != (kind == "TAESD"):
            raise CheckpointError(
                f"{name} is a full VAE; a TAESD, the tiny autoencoder, is wanted here."
                if kind == "TAESD"
                else f"{name} is a TAESD, the tiny autoencoder; a full VAE is wanted here."
            )
        statistics = read_statistics(weights, described)
        state_dict = _read(weights, described, dtype or described.dtype, torch.device(device))
    if hash_file is None:
        hash_file = described.header.file_size <= HASH_AT_MOST_BYTES
    identity = identify_described(described, hash_file=hash_file)
    model = described.network
    assign(model, state_dict)
    family = identity.family
    space = None if family is None or identity.is_taesd else LatentSpace.of(family, statistics)
    if identity.is_taesd:  # the sampler's, which are only packed
        space = LatentSpace(1.0, 0.0, family.packing.patch if family and family.packing else 1)
    return LoadedVAE(model.requires_grad_(False).eval(), identity, space)


def _read(
    weights: WeightsFile, described: Described, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    state_dict = {}
    for key, source in described.keys.sources.items():
        stored = read_numbers(weights, source)
        tensor = described.keys.tensor(key, stored).to(dtype)
        if tensor.dtype != stored.dtype and not all_finite(tensor):
            raise CheckpointError(
                f"{weights.header.path.name} has weights too large for {str(dtype).removeprefix('torch.')} "
                f"({quote(source)}); load it in bfloat16 or float32."
            )
        state_dict[key] = tensor.to(device)
    return state_dict
