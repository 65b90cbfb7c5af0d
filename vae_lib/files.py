"""Files and folders, of which any may be closed to us; and writing so that a failure leaves nothing half-done.

``Path.is_file`` and its like raise where a folder on the way may not be entered. Where only yes or no counts,
``os.path.isfile`` says no; where the user has to know, the functions here say it in a sentence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from vae_lib.errors import InputError, printable

PathLike = str | os.PathLike[str]

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
if os.name == "nt":
    _NO_ROOM.add(112)  # ERROR_DISK_FULL, as safetensors passes it on


def require_folder(folder: Path, otherwise: str) -> None:
    """Raise an InputError unless ``folder`` is one that we may look at.

    Args:
        otherwise: what the user can do when it is not there, as the end of a sentence.
    """
    try:
        there = stat.S_ISDIR(folder.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be looked at ({error.strerror or error}); check its permissions, or choose "
            "another."
        ) from error
    if not there:
        raise InputError(f"There is no folder {folder}; {otherwise}.")


def files_in(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The files in a folder and its subfolders, and the folders that may not be looked into, each with a sentence.

    Hidden ones are left out. Links to folders are followed, as in the WebUI, and each folder is listed once: by its own
    name where it has one here, else by that of a link to it. A folder that is not there is empty.
    """
    files: list[Path] = []
    closed: dict[Path, str] = {}
    folders, links = [folder], deque[Path]()
    seen: set[object] = set()  # a link may lead in a circle
    while folders or links:
        current = folders.pop() if folders else links.popleft()
        try:
            status = current.stat()
            identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(current)
            if identity in seen:
                continue
            seen.add(identity)
            with os.scandir(current) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:  # gone in the meantime
            continue
        except OSError as error:
            closed[current] = printable(f"The folder {current} cannot be looked into: {error.strerror or error}.")
            continue
        for entry in shown:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif entry.is_dir():
                    links.append(Path(entry.path))
                elif entry.is_file():
                    files.append(Path(entry.path))
    return sorted(files), dict(sorted(closed.items()))


def is_gone(path: Path) -> bool:
    """Whether a file is certainly not there any more; one that may not be looked at may well be."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def check_target(path: PathLike) -> Path:
    """The file that writing to ``path`` makes or replaces, links followed.

    Raises:
        InputError: when no file can be written there.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write.")
        if target.exists() and not target.is_file():
            raise InputError(f"{path} is not an ordinary file, so it cannot be replaced; give another name.")
        if not target.parent.is_dir():
            raise InputError(f"There is no folder {target.parent} to write {target.name} to; make it first.")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.") from error
    return target


def check_outputs(outputs: Sequence[PathLike], inputs: Sequence[PathLike | None]) -> None:
    """See before the work that its results can be written, and that they replace nothing that it reads.

    Raises:
        InputError: an output cannot be written, is one of the inputs, or is named twice.
    """
    read = {os.path.realpath(path): path for path in inputs if path is not None}
    seen: set[Path] = set()
    for path in outputs:
        target = check_target(path)
        if any(_is_same(target, there) for there in read):
            raise InputError(f"{path} is one of the files that are read here; give another name to write to.")
        if target in seen:
            raise InputError(f"{path} was given for two results; give each its own name.")
        seen.add(target)
        _check_writable(target)


def _is_same(one: Path, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return str(one) == other


def _check_writable(target: Path) -> None:
    """By writing: permissions alone tell too little of a network drive, and nothing to an administrator."""
    probe = target.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"The folder {target.parent} cannot be written to ({(error.strerror or str(error)).lower()}); check its "
            "permissions, or choose another."
        ) from error


def write_atomically(path: PathLike, writer: Callable[[Path], object]) -> None:
    """Let ``writer`` write a file beside ``path``, under a hidden name with the same suffix, then rename it.

    A file that is there already stays whole until the new one replaces it; when anything fails, or the user
    interrupts, the new one is removed. A symbolic link is followed, so that its target is what gets replaced.

    Raises:
        InputError: when the disk is full or the folder cannot be written to. Other errors of ``writer`` pass.
    """
    target = check_target(path)
    begin = f".{target.stem[:80]}."
    _remove_old(target.parent, re.compile(re.escape(begin) + "[0-9a-f]{12}" + re.escape(target.suffix)))
    aside = target.with_name(f"{begin}{secrets.token_hex(6)}{target.suffix}")
    is_written = False
    try:
        writer(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        is_written = True
        os.replace(aside, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        reason = _reason(error)
        if is_written and isinstance(error, PermissionError) and os.path.isfile(target):
            reason = "it is open in another program, or may not be replaced; close that, or give another name"
        if reason:
            raise InputError(f"{path} was not written: {reason}.") from error
        raise


def _remove_old(folder: Path, left: re.Pattern[str]) -> None:
    """What writes of this file left behind that were cut short; those of the last hour may still go on."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if left.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > 3600:
                os.unlink(entry.path)


def _reason(error: BaseException) -> str | None:
    """Why a file could not be written, for a sentence; None when the error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    # safetensors has a type of its own for a failed write, and the number only in its words, which differ
    if number is None and (match := re.search(r"\bos error (\d+)\)|\bOs \{ code: (\d+),", str(error))):
        number = int(match[1] or match[2])
    if number in _NO_ROOM:
        return "the disk is full; make room or choose another folder"
    return None if number is None else os.strerror(number).lower()
