"""TAESD under the names that the WebUI looks for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from vae_lib.catalog import FAMILIES
from vae_lib.checkpoints import load_vae, open_weights
from vae_lib.hub.remote import RemoteFile
from vae_lib.hub.staging import flush, own_part, place

# the longest first: taesdxl begins with taesd
_STEMS = sorted({family.taesd_stem for family in FAMILIES.values() if family.taesd_stem}, key=len, reverse=True)
_STEM = re.compile(rf"(?<![a-z])(?:{'|'.join(_STEMS)})", re.IGNORECASE)  # lighttaew2_1 takes other latents


def taesd_stem(remote: RemoteFile) -> str | None:
    """``taesdxl`` of the TAESD for SDXL and so on; None when nothing says for which family it is."""
    if remote.entry is not None:
        return stem_of_family(remote.entry.family) if remote.entry.kind == "TAESD" else None
    match = _STEM.search(remote.filename.split("/")[-1]) or _STEM.search(remote.repo_id.split("/")[-1])
    return match[0].lower() if match else None


def stem_of_family(family: str) -> str | None:
    """``taesdxl`` of SDXL; None for a family that has no TAESD."""
    return FAMILIES[family].taesd_stem if family in FAMILIES else None


def has_taesd(folder: Path | str, family: str) -> bool:
    """Whether all of it is there for a family (by name, as in ``FAMILIES``)."""
    halves = FAMILIES[family].taesd_halves if family in FAMILIES else {}
    return bool(halves) and all(any(map(os.path.isfile, FAMILIES[family].taesd_files(folder, half))) for half in halves)


def write_host_files(source: Path, folder: Path, stem: str) -> list[Path]:
    """Write a TAESD as the ``.pth`` files that the WebUI expects, next to the safetensors file.

    These are one of each half (``taesd_encoder.pth``), or one of it all where it is a video model's (``taew2_1.pth``).
    The WebUI would fetch these from GitHub when it needs one (``modules/sd_vae_taesd.py``). Files that exist
    are left alone. The tensors are those of ``source``, dtype included; the format is torch's older one,
    because the WebUI's check of pickles does not know some of the members that newer versions of torch put
    into the zip format.

    Returns:
        The files written.

    Raises:
        CheckpointError: ``source`` is not a TAESD.
        OSError: a file cannot be written.
    """
    written = []
    for name, tensors in _host_files(source, stem):
        target = folder / f"{name}.pth"
        if not tensors or os.path.lexists(target):
            continue
        part = own_part(target)
        try:
            torch.save(tensors, part, _use_new_zipfile_serialization=False)
            flush(part)
            place(part, target)
        except FileExistsError:  # the WebUI was faster
            continue
        finally:
            part.unlink(missing_ok=True)
        written.append(target)
    return written


def _host_files(source: Path, stem: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """What each is called and holds; no tensor is a view of the whole file's storage."""
    loaded = load_vae(source, kind="TAESD", hash_file=False)
    if loaded.identity.layout == "taehv":
        with open_weights(source) as weights:
            yield stem, {key: weights.read(key).clone() for key in weights.header.tensors}
        return
    for half in ("encoder", "decoder"):
        network = getattr(loaded.model, half)
        tensors = {} if network is None else network.state_dict()
        yield f"{stem}_{half}", {key: tensor.clone() for key, tensor in tensors.items()}
