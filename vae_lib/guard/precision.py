"""Which VAEs overflow, and the dtype that holds their numbers: remembered from one start of the WebUI to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from vae_lib.decode import Outcome
from vae_lib.device import DTYPES, dtype_name
from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.guard.notices import log

_MOST = 256  # VAEs in the file; the oldest entries go first


def file_hash(path: str, sha256: Callable[[str, str], str | None]) -> str | None:
    """The SHA-256 of a file's content; None where the host does not hash.

    Args:
        sha256: the host's, which remembers; given the path and a key. Its own key for VAEs is one for all of them, so
            ours has the file's name in it.

    Raises:
        OSError: when the file cannot be read.
    """
    return sha256(path, f"vae-guard/{os.path.basename(path)}")


def identity(path: str, sha256: Callable[[str, str], str | None]) -> str:
    """What tells a file's weights from others: its hash, or (where the host does not hash) its path, size and time.

    Args:
        sha256: as in ``file_hash``.
    """
    try:
        state = os.stat(path)
        known = file_hash(path, sha256)
    except OSError:
        return path
    return known or f"{path}|{state.st_size}|{state.st_mtime_ns}"


class Precision:
    """A small JSON object in the host's data folder: a VAE's identity and its dtype."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "vae-guard-precision.json"

    def known(self, identity: str) -> torch.dtype | None:
        """The dtype that a VAE was found to need; None when it never overflowed."""
        return DTYPES.get(self._read().get(identity, ""))

    def is_empty(self) -> bool:
        """Whether no VAE ever overflowed; then nobody needs to find out which one this is."""
        return not self._read()

    def remember(self, identity: str, outcome: Outcome) -> None:
        """Note the dtype that held the numbers, when a decode or encode had to be repeated in another one."""
        entries = self._read()
        entries.pop(identity, None)
        entries[identity] = dtype_name(outcome.plan.dtype)
        text = json.dumps(dict(list(entries.items())[-_MOST:]), indent=1)
        try:
            write_atomically(self.file, lambda aside: aside.write_text(text, encoding="utf-8"))
        except InputError as error:
            log.warning("the dtype that the VAE needs was not noted: %s", error)

    def _read(self) -> dict[str, str]:
        """A file that is damaged or not there is an empty one: the next overflow writes it again."""
        try:
            entries = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(entries, dict):
            return {}
        return {name: dtype for name, dtype in entries.items() if isinstance(dtype, str)}
