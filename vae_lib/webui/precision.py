"""Which VAEs overflow, and the dtype that holds their numbers: remembered from one start of the WebUI to the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from vae_lib.decode import Outcome
from vae_lib.webui import notices

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_MOST = 256  # VAEs in the file; the oldest entries go first


def file() -> Path:
    """Where it is written: a small JSON object in the host's data folder."""
    from modules import paths

    return Path(paths.data_path) / "vae-guard-precision.json"


def known(model: Any) -> torch.dtype | None:
    """The dtype that the VAE in use was found to need; None when it never overflowed."""
    return _DTYPES.get(_read().get(_identity(model), ""))


def remember(model: Any, outcome: Outcome) -> None:
    """Note the dtype that held the numbers, when a decode or encode had to be repeated in another one."""
    repeated = any(attempt.plan.dtype != outcome.plan.dtype for attempt in outcome.attempts)
    name = next((name for name, dtype in _DTYPES.items() if dtype == outcome.plan.dtype), None)
    if not repeated or not outcome.plan.route.exact or name is None:
        return
    entries, identity = _read(), _identity(model)
    entries.pop(identity, None)
    entries[identity] = name
    target = file()
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(dict(list(entries.items())[-_MOST:]), indent=1), encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        notices.log.warning("the VAE's dtype could not be noted in %s: %s", target, error.strerror)


def _identity(model: Any) -> str:
    """The weights in use: their file, its size and time, which change when another is put in its place."""
    from modules import sd_vae

    name = sd_vae.loaded_vae_file or getattr(getattr(model, "sd_checkpoint_info", None), "filename", None)
    try:
        state = os.stat(name or "")
    except OSError:
        return str(name)
    return f"{name}|{state.st_size}|{state.st_mtime_ns}"


def _read() -> dict[str, str]:
    """A file that is damaged or not there is an empty one: the next overflow writes it anew."""
    try:
        entries = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {name: dtype for name, dtype in entries.items() if isinstance(dtype, str)}
