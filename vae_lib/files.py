"""Writing files so that a failure leaves what was there before, and nothing half-written beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from vae_lib.errors import InputError

PathLike = str | os.PathLike[str]

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
if os.name == "nt":
    _NO_ROOM.add(112)  # ERROR_DISK_FULL, as safetensors passes it on


def write_atomically(path: PathLike, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` write a file beside ``path``, under a hidden name with the same suffix, then rename it.

    A file that is there already stays whole until the new one replaces it; when anything fails, or the user
    interrupts, the new one is removed. A symbolic link is followed, so that its target is what gets replaced.

    Raises:
        InputError: when the disk is full or the folder cannot be written to. Other errors of ``writer`` pass.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write.")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is not an ordinary file, so it cannot be replaced; give another name.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    aside = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(6)}{target.suffix}")
    try:
        writer(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        os.replace(aside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if reason := _reason(error):
            raise InputError(f"{path} was not written: {reason}.") from error
        raise


def _reason(error: BaseException) -> str | None:
    """Why a file could not be written, for a sentence; None when the error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    # safetensors has a type of its own for a failed write, and the number only in its words, which differ
    if number is None and (match := re.search(r"\bos error (\d+)\)|\bOs \{ code: (\d+),", str(error))):
        number = int(match[1] or match[2])
    if number in _NO_ROOM:
        return "the disk is full; make room or choose another folder"
    return None if number is None else os.strerror(number).lower()
