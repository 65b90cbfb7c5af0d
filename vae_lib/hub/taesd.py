"""TAESD under the names that the WebUI looks for."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from vae_lib.catalog import FAMILIES
from vae_lib.checkpoints import load_vae
from vae_lib.hub.remote import RemoteFile
from vae_lib.hub.staging import flush, own_part, place

HALVES = ("encoder", "decoder")

# the longest first: taesdxl begins with taesd
_STEMS = sorted(
    {family.taesd_stem for family in FAMILIES.values() if family.taesd_stem}, key=len, reverse=True
)
_STEM = re.compile("|".join(_STEMS), re.IGNORECASE)


def taesd_stem(remote: RemoteFile) -> str | None:
    """``taesdxl`` of the TAESD for SDXL and so on; None when nothing says for which family it is."""
    if remote.entry is not None:
        return stem_of_family(remote.entry.family) if remote.entry.kind == "TAESD" else None
    match = _STEM.search(remote.filename.split("/")[-1]) or _STEM.search(remote.repo_id.split("/")[-1])
    return match[0].lower() if match else None


def stem_of_family(family: str) -> str | None:
    """``taesdxl`` of SDXL; None for a family that has no TAESD."""
    return FAMILIES[family].taesd_stem if family in FAMILIES else None


def host_files(folder: Path | str, stem: str) -> dict[str, Path]:
    """Half -> the file that the WebUI loads it from (``taesd_encoder.pth``), whether it is there or not."""
    return {half: Path(folder) / f"{stem}_{half}.pth" for half in HALVES}


def has_taesd(folder: Path | str, family: str) -> bool:
    """Whether both halves are there for a family (by name, as in ``FAMILIES``)."""
    return family in FAMILIES and all(
        any(map(os.path.isfile, FAMILIES[family].taesd_files(folder, half))) for half in HALVES
    )


def write_host_files(source: Path, folder: Path, stem: str) -> list[Path]:
    """Write the halves of a TAESD as the ``.pth`` files that the WebUI expects, next to the safetensors file.

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
    state_dict = load_vae(source, kind="TAESD", hash_file=False).model.state_dict()
    written = []
    for half, target in host_files(folder, stem).items():
        tensors = {
            key[len(half) + 1 :]: tensor.clone()  # a tensor of its own, not the whole file's storage
            for key, tensor in state_dict.items()
            if key.startswith(f"{half}.")
        }
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
