"""The tensors in a file of latents, in whichever of the forms that tools write them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lib.checkpoints.header import quote_some
from vae_lib.checkpoints.layouts import map_keys
from vae_lib.checkpoints.pickle_file import load_pickle, looks_like_pickle, plain_copy
from vae_lib.checkpoints.safetensors_file import looks_like_safetensors
from vae_lib.checkpoints.source import open_weights
from vae_lib.errors import InputError

MOST_BYTES = 1 << 30  # of latents; those of a batch of eight at 8192x8192 have that many
_NUMPY = b"\x93NUMPY"
_NAMES = ("latents", "latent_tensor", "samples", "latent")
_OWN = {"scaling_factor": "1", "shift_factor": "0"}  # latents as the VAE gives them
# By the end of their name: kohya's copy of FLUX.1's VAE, which Lumina 2 has as well, scales what it encodes. Caches for
# SD1, SDXL and SD3 are as the VAE gives them (sd-scripts, library/strategy_*.py).
_CACHED = {name: {"family": "FLUX.1"} for name in ("flux", "lumina")}
_SD1_SCALE = 0.18215  # what ComfyUI's first files were multiplied by, whatever the model


@dataclass(frozen=True)
class Found:
    """Latents (of any number of dimensions yet) on the CPU, and what their file says of them."""

    latents: Tensor
    metadata: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Found:
    """The latents in a file.

    Raises:
        CheckpointError, InputError: when it cannot be read or holds none.
        OSError: likewise.
    """
    start = b""
    if path.is_file():  # a pipe would block; what is not a file is reported below
        with path.open("rb") as file:
            start = file.read(512)
    if not looks_like_safetensors(start):
        if start.startswith(_NUMPY):
            return Found(_of_numpy(_load_numpy(path), path.name))
        if start.startswith(b"PK\x03\x04") and _members(path):
            return _kohya(path)
        if looks_like_pickle(start):
            return _pickled(load_pickle(path), path)
    with open_weights(path) as file:
        name = _choose(file.header.tensors, path.name)
        latents, metadata = file.read(name), dict(file.header.metadata)
        if name != "latent_tensor":
            return Found(latents, metadata)
        # ComfyUI's .latent: as its VAE gives them, once multiplied by SD1's factor
        if "latent_format_version_0" not in file.header.tensors:
            latents = latents.float() / _SD1_SCALE
        return Found(latents, metadata | (_OWN if _is_own(latents) else {}))


def _is_own(latents: Tensor) -> bool:
    """FLUX.2's are packed and normalised in ComfyUI too."""
    return latents.ndim < 2 or latents.shape[1] != 128


def _choose(tensors: Mapping[str, Any], name: str) -> str:
    """Which of a file's tensors are its latents: those by name, or the only ones."""
    for wanted in _NAMES:
        if wanted in tensors:
            return wanted
    if map_keys(tensors) is not None:
        raise InputError(f"{name} is a VAE, not latents; give it with --vae, and a file of latents before it.")
    if len(tensors) == 1:
        return next(iter(tensors))
    held = f"only {quote_some(list(tensors))}" if tensors else "nothing"
    raise InputError(f"{name} holds no tensor named 'latents' ({held}); save the latents under that name.")


def _pickled(loaded: Any, path: Path) -> Found:
    name = path.name
    if isinstance(loaded, dict):
        tensors = {str(key): value for key, value in dict.items(loaded) if isinstance(value, (Tensor, list))}
        loaded = tensors[_choose(tensors, name)]
    if isinstance(loaded, Tensor):
        return Found(plain_copy(loaded, name, "the latents"))
    if isinstance(loaded, (list, tuple)) and loaded and all(isinstance(item, Tensor) for item in loaded):
        if len({item.shape[-3:] for item in loaded}) > 1 or {item.ndim for item in loaded} - {3, 4}:
            shapes = quote_some([str(tuple(item.shape)) for item in loaded])
            raise InputError(
                f"{name} holds a list of latents of different shapes ({shapes}); save them in a file each."
            )
        copies = [plain_copy(item, name, "the latents") for item in loaded]
        return Found(torch.cat([item if item.ndim == 4 else item[None] for item in copies]))
    raise InputError(
        f"{name} holds a Python {type(loaded).__name__}, not latents; save them with torch.save(latents, ...) or as "
        "one tensor 'latents' in a safetensors file."
    )


def _load_numpy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path.name} is damaged, or holds Python objects instead of numbers.") from error


def _of_numpy(array: Any, name: str) -> Tensor:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.nbytes > MOST_BYTES:
        kind = getattr(array, "dtype", type(array).__name__)
        raise InputError(f"{name} holds numbers of type {kind}; floating-point numbers are needed.")
    wide = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=wide, order="C"))


def _members(path: Path) -> list[str]:
    """The arrays in an .npz file; none where it is another archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [entry.filename for entry in archive.infolist() if entry.filename.endswith(".npy")]
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _kohya(path: Path) -> Found:
    """One picture's latents as kohya's scripts cache them, beside its size and the like."""
    names = [name for name in _members(path) if name.startswith("latents") and "flipped" not in name]
    if len(names) != 1:
        held = quote_some([name.removesuffix(".npy") for name in names or _members(path)])
        raise InputError(f"{path.name} holds the arrays {held}, of which one must be named 'latents'.")
    with zipfile.ZipFile(path) as zipped:
        if zipped.getinfo(names[0]).file_size > MOST_BYTES:
            raise InputError(f"{path.name} holds more than latents ever take; it is damaged.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive[names[0].removesuffix(".npy")]
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path.name} is damaged, or holds Python objects instead of numbers.") from error
    latents = _of_numpy(array, path.name)
    is_own = path.stem.endswith("_sd3") or (latents.ndim > 2 and latents.shape[-3] == 4)
    return Found(latents, dict(_OWN) if is_own else dict(_CACHED.get(path.stem.rpartition("_")[2], {})))
