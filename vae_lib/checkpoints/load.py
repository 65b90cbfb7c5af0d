"""From a file to a network that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch

from vae_lib.checkpoints.header import Header, quote, quote_some
from vae_lib.checkpoints.identify import (
    Identity,
    Lookup,
    config_of,
    find_vae,
    identify_header,
    taesd_channels,
    vae_shapes,
)
from vae_lib.checkpoints.layouts import KeyMap, as_ldm
from vae_lib.checkpoints.source import WeightsFile, open_weights
from vae_lib.errors import CheckpointError
from vae_lib.files import PathLike
from vae_lib.networks import TAESD, AutoencoderKL

VAE = AutoencoderKL | TAESD

HASH_AT_MOST_BYTES = 1 << 30  # whole checkpoints are larger, and no catalog lists them as VAEs


@dataclass(frozen=True)
class LoadedVAE:
    """A network in evaluation mode, without gradients, and what its file is."""

    model: VAE
    identity: Identity


def load_vae(
    path: PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    kind: Literal["AutoencoderKL", "TAESD"] | None = None,
    hash_file: bool | None = None,
    known: Lookup | None = None,
) -> LoadedVAE:
    """Load the VAE of a file, and nothing else of it.

    Args:
        dtype: float dtype of the weights; by default that of the file (the widest, if it mixes them). fp8
            becomes float16 and float64 becomes float32, because convolutions want that.
        kind: refuse a file of the other kind.
        hash_file: compute the SHA-256 and ask the catalog for it; by default for files of up to 1 GiB.
        known: catalog lookup by SHA-256; the package's own catalog when None.

    Raises:
        CheckpointError: when the file cannot be read, is damaged or unsafe, or holds no VAE that we know.
    """
    with open_weights(path) as weights:
        header = weights.header
        found = find_vae(header)
        if kind is not None and found.is_taesd != (kind == "TAESD"):
            raise CheckpointError(
                f"{header.path.name} is a full VAE; a TAESD, the tiny autoencoder, is wanted here."
                if kind == "TAESD"
                else f"{header.path.name} is a TAESD, the tiny autoencoder; a full VAE is wanted here."
            )
        model = _empty_model(header, found)
        if hash_file is None:
            hash_file = header.file_size <= HASH_AT_MOST_BYTES
        identity = identify_header(header, found, hash_file=hash_file, known=known)
        state_dict = _read(weights, found, dtype or _natural_dtype(header, found), torch.device(device))
    model.load_state_dict(state_dict, assign=True)
    return LoadedVAE(model.requires_grad_(False).eval(), identity)


def _empty_model(header: Header, found: KeyMap) -> VAE:
    """The network that a file's shapes describe, on the meta device, after checking that all of them fit."""
    shapes = vae_shapes(header, found)
    model: VAE
    with torch.device("meta"):
        if found.is_taesd:
            halves = {key.partition(".")[0] for key in shapes}
            channels = taesd_channels(shapes, header.path.name)
            model = TAESD(channels, encoder="encoder" in halves, decoder="decoder" in halves)
        else:
            model = AutoencoderKL(config_of(shapes, header.path.name))
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    _check_shapes(header.path.name, shapes, wanted)
    return model


def _check_shapes(
    name: str, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := [key for key in wanted if key not in shapes]:
        raise CheckpointError(f"{name} is an incomplete VAE: {quote_some(missing)} missing.")
    if extra := [key for key in shapes if key not in wanted]:
        raise CheckpointError(f"{name} is a VAE of an unknown kind: it has {quote_some(extra)}.")
    if wrong := [key for key in wanted if shapes[key] != wanted[key]]:
        raise CheckpointError(
            f"{name} is damaged or of an unknown kind: {quote(wrong[0])} has shape {shapes[wrong[0]]} where "
            f"{wanted[wrong[0]]} is expected ({len(wrong)} such tensors)."
        )


def _natural_dtype(header: Header, found: KeyMap) -> torch.dtype:
    """One dtype for all the weights that loses nothing and that convolutions run in."""
    dtypes = []
    for source in found.sources.values():
        stored = getattr(torch, header.tensors[source].dtype, None)
        if not isinstance(stored, torch.dtype) or not stored.is_floating_point:
            raise CheckpointError(
                f"{header.path.name} stores its weights as {header.tensors[source].dtype}, "
                "which cannot be used; choose an fp16, bf16 or fp32 file."
            )
        dtypes.append(stored if stored.itemsize > 1 else torch.float16)
    widest = reduce(torch.promote_types, dtypes)
    return torch.float32 if widest == torch.float64 else widest


def _read(
    weights: WeightsFile, found: KeyMap, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    name = weights.header.path.name
    state_dict = {}
    for key, source in found.sources.items():
        stored = weights.read(source)
        if stored.element_size() == 1:
            stored = stored.to(torch.float16)  # few operations know fp8
        if not _all_finite(stored):
            raise CheckpointError(
                f"{name} is damaged: {quote(source)} holds NaN or infinite numbers; use another copy of it."
            )
        tensor = as_ldm(key, stored).to(dtype)
        if tensor.dtype != stored.dtype and not _all_finite(tensor):
            raise CheckpointError(
                f"{name} has weights too large for {str(dtype).removeprefix('torch.')} ({quote(source)}); "
                "load it in bfloat16 or float32."
            )
        state_dict[key] = tensor.to(device)
    return state_dict


def _all_finite(tensor: torch.Tensor) -> bool:
    # One pass: NaN and infinity always reach the sum. Only a sum that overflows needs a look at each.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())
