"""Latents on disk while they are being decoded, so that a picture outlives the process.

One safetensors file a batch, as the sampler left it, with the factors and the infotexts in its metadata;
``python -m vae_lib decode`` reads it too. It is removed when the picture is there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from torch import Tensor

from vae_lib.checkpoints.latents import load_latents
from vae_lib.checkpoints.write import save_safetensors
from vae_lib.errors import InputError

MB = 10**6
_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A batch that was not decoded.

    Attributes:
        latents: (B, C, h, w), scaled, on the CPU.
        scale_factor: the model's, as the host keeps it; 0 where it has none (SD3).
        infotexts: one per picture, or empty.
    """

    path: Path
    latents: Tensor
    model_name: str
    scale_factor: float
    infotexts: list[str]
    created: datetime


def write(
    folder: Path,
    latents: Tensor,
    model_name: str,
    scale_factor: float,
    infotexts: Sequence[str],
    most_mb: int,
    factors: tuple[float, float],
) -> Path | None:
    """Write a batch; None when ``most_mb`` is too little for it. The oldest files go when it gets too much in all.

    Args:
        factors: scaling and shift factor, for the command line.

    Raises:
        InputError: when the disk is full or the folder cannot be written to.
    """
    need = latents.numel() * latents.element_size()
    if need > most_mb * MB:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    _make_room(folder, most_mb * MB - need)
    now = datetime.now(timezone.utc)
    metadata = {
        "parameters": infotexts[0] if infotexts else "",  # what the command line puts into the picture
        "infotexts": json.dumps(list(infotexts)),
        "model": model_name,
        "model_scale_factor": repr(scale_factor),
        "scaling_factor": repr(factors[0]),
        "shift_factor": repr(factors[1]),
        "created": now.isoformat(),
    }
    path = folder / f"{now.astimezone():%Y%m%d-%H%M%S-%f}.safetensors"
    save_safetensors({"latents": latents}, path, metadata)
    return path


def found(folder: Path) -> tuple[list[Unfinished], list[str]]:
    """What is in the folder, the latest first, and a sentence for each file that cannot be read."""
    items, problems = [], []
    try:
        paths = _latest_first(folder)
    except OSError as error:
        return [], [f"The folder {folder} cannot be looked into: {error.strerror or error}."]
    for path in paths:
        if path.name.startswith("."):
            continue  # a write that was cut short
        try:
            latents, metadata = load_latents(path)
        except InputError as error:
            problems.append(str(error))
            continue
        items.append(_read(path, latents, metadata))
    return items, problems


def _latest_first(folder: Path) -> list[Path]:
    """Their names begin with the time. A folder that is not there is empty, and one that is closed to us an OSError."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names, reverse=True) if name.endswith(_SUFFIX)]


def _read(path: Path, latents: Tensor, metadata: dict[str, str]) -> Unfinished:
    """Metadata that is missing or odd is done without: the latents matter more."""
    try:
        infotexts = [str(text) for text in json.loads(metadata["infotexts"])]
    except (KeyError, TypeError, ValueError, RecursionError):
        infotexts = []
    try:
        scale_factor = float(metadata["model_scale_factor"])
    except (KeyError, ValueError):
        scale_factor = 0.0
    try:
        created = datetime.fromisoformat(metadata["created"])
    except (KeyError, ValueError):
        created = _changed(path)
    return Unfinished(path, latents, metadata.get("model", "?"), scale_factor, infotexts, created)


def _changed(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except OSError:  # gone, or closed to us, since it was read
        return datetime.now(timezone.utc)


def _make_room(folder: Path, most: int) -> None:
    """Remove the oldest files until ``most`` bytes are left, and what cut-short writes left behind.

    What cannot be removed stays: then the write that follows says why.
    """
    files = []
    try:
        paths = _latest_first(folder)
    except OSError:
        return
    for path in paths:
        try:
            files.append((path, path.stat().st_size))
        except OSError:
            continue
    kept = 0
    for path, size in files:
        kept += size
        if kept > most:
            with contextlib.suppress(OSError):
                path.unlink()
