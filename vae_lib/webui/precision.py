"""Which VAEs overflow, and the dtype that holds their numbers: remembered from one start of the WebUI to the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from vae_lib.decode import DTYPES, Outcome, dtype_name
from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.webui import notices

_MOST = 256  # VAEs in the file; the oldest entries go first


def file() -> Path:
    """Where it is written: a small JSON object in the host's data folder."""
    from modules import paths

    return Path(paths.data_path) / "vae-guard-precision.json"


def known(model: Any) -> torch.dtype | None:
    """The dtype that the VAE in use was found to need; None when it never overflowed."""
    entries = _read()
    return DTYPES.get(entries.get(_identity(model), "")) if entries else None


def remember(model: Any, outcome: Outcome) -> None:
    """Note the dtype that held the numbers, when a decode or encode had to be repeated in another one."""
    if not outcome.repaired or not outcome.plan.route.exact:
        return
    entries, identity = _read(), _identity(model)
    entries.pop(identity, None)
    entries[identity] = dtype_name(outcome.plan.dtype)
    text = json.dumps(dict(list(entries.items())[-_MOST:]), indent=1)
    try:
        write_atomically(file(), lambda aside: aside.write_text(text, encoding="utf-8"))
    except InputError as error:
        notices.log.warning("the dtype that the VAE needs was not noted: %s", error)


def _identity(model: Any) -> str:
    """The weights in use: the hash of their file, or (with ``--no-hashing``) its path, size and time.

    The host remembers hashes; its own key for VAEs is one for all of them, so ours has the file's name in it.
    """
    from modules import hashes, sd_vae

    path = sd_vae.loaded_vae_file
    if path is None:
        checkpoint = getattr(model, "sd_checkpoint_info", None)
        if known := getattr(checkpoint, "sha256", None):
            return str(known)
        path = getattr(checkpoint, "filename", "")
    try:
        state = os.stat(path)
        known = hashes.sha256(path, f"vae-guard/{os.path.basename(path)}")
    except OSError:
        return str(path)
    return known or f"{path}|{state.st_size}|{state.st_mtime_ns}"


def _read() -> dict[str, str]:
    """A file that is damaged or not there is an empty one: the next overflow writes it anew."""
    try:
        entries = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: dtype for name, dtype in entries.items() if isinstance(dtype, str)}
