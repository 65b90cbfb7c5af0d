"""From a file to a network that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from vae_lib.catalog import Family, LatentSpace
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

    ``statistics`` are the tensors beside it that say how its latents are normalised, by name.
    """

    model: VAE
    identity: Identity
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def exact(self) -> Network | None:
        """The network, if it is a full VAE."""
        return None if isinstance(self.model, TAESD) else self.model

    @property
    def tiny(self) -> TAESD | None:
        """The network, if it is a TAESD."""
        return self.model if isinstance(self.model, TAESD) else None

    @property
    def space(self) -> LatentSpace | None:
        """That of the sampler's latents of its family; None where the file leaves it open."""
        return None if self.identity.family is None else self.space_of(self.identity.family)

    def space_of(self, family: Family) -> LatentSpace | None:
        """That of a family's sampler; None where its numbers are in files of the full VAE, and this is another."""
        packing = family.packing
        if packing is not None and not {packing.mean, packing.variance} <= self.statistics.keys():
            return None
        return LatentSpace.of(family, self.statistics)


def load_vae(
    path: PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    kind: Literal["VAE", "TAESD"] | None = None,
    hash_file: bool | None = None,
    weights: bool = True,
    video: bool = False,
) -> LoadedVAE:
    """Load the VAE of a file, and nothing else of it.

    Args:
        dtype: float dtype of the weights; by default that of the file (the widest, if it mixes them). fp8
            becomes float16 and float64 becomes float32, because convolutions want that.
        kind: refuse a file of the other kind.
        hash_file: compute the SHA-256 and ask the catalog for it; by default for files of up to 1 GiB.
        weights: False leaves the network on the meta device: it is asked what the file is, and computes nothing.
        video: the network of videos, which has three times as many weights, instead of that of a picture.

    Raises:
        UnknownVAE: when it holds a VAE of a kind that we have no network for.
        CheckpointError: when the file cannot be read, is damaged or unsafe, or holds no VAE.
    """
    with open_weights(path) as file:
        described = describe(file.header)
        name = described.header.path.name
        if kind is not None and described.keys.is_taesd != (kind == "TAESD"):
            raise CheckpointError(
                f"{name} is a full VAE; a TAESD, the tiny autoencoder, is wanted here."
                if kind == "TAESD"
                else f"{name} is a TAESD, the tiny autoencoder; a full VAE is wanted here."
            )
        if video:
            described = described.for_video()
        statistics = read_statistics(file, described)
        state_dict = _read(file, described, dtype or described.dtype, torch.device(device)) if weights else None
    if hash_file is None:
        hash_file = described.header.file_size <= HASH_AT_MOST_BYTES
    identity = identify_described(described, statistics, hash_file=hash_file)
    model = described.network
    if state_dict is not None:
        assign(model, state_dict)
    return LoadedVAE(model.requires_grad_(False).eval(), identity, statistics)


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
