"""Where files are while they arrive, where they go when they are good, and where when they are not.

Everything on the way lies in a hidden folder inside the target folder: on the same file system, so that the
last step is a rename, and out of sight of the WebUI's VAE list, whose ``**`` does not look into hidden
folders. The parts also end in ``.part``, for programs that do look there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vae_lib.catalog.names import numbered
from vae_lib.errors import Cancelled, DownloadError
from vae_lib.hub.remote import RemoteFile
from vae_lib.units import size_text

HIDDEN = ".vae-guard"
DOWNLOADS = "downloads"
QUARANTINE = "quarantine"

LONGEST_ON_WINDOWS = 260  # letters of a path, with the one that ends it

# Left free after a download, for the rest of the system.
SPARE_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class PartialDownload:
    """A download that was cancelled or broken off. ``done`` and ``size`` are in bytes."""

    reference: str
    name: str
    done: int
    size: int | None
    folder: Path

    def discard(self) -> None:
        """Delete what there is of it. Not while it is running: cancel it first."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Staging:
    """The place of one download. ``part`` grows; ``whole`` is the same file once all of it is there."""

    folder: Path
    part: Path
    whole: Path

    def done(self) -> int:
        """Bytes that are here already."""
        try:
            status = self.part.lstat()
        except FileNotFoundError:
            return 0
        if not stat.S_ISREG(status.st_mode):  # nothing of ours: do not write through a link
            self.part.unlink()
            return 0
        return status.st_size

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def staging_for(
    remote: RemoteFile, target_folder: Path, waiting: Callable[[], None], cancelled: Callable[[], bool]
) -> Iterator[Staging]:
    """The place for a download, for as long as no other thread or process has it.

    The place goes with the content (its hash), not with the reference: a download that was started under
    another name, from a mirror or at an earlier commit is continued.

    Args:
        waiting: called once when somebody else is fetching the same file and this call waits for that to end.
    """
    from filelock import FileLock, Timeout  # what huggingface_hub itself locks with

    content = remote.sha256 or remote.git_sha1 or f"{remote.repo_id}/{remote.filename}@{remote.revision}"
    key = hashlib.sha256(content.encode()).hexdigest()[:20]
    with as_sentence(target_folder):
        downloads = hidden_folder(target_folder, DOWNLOADS)
        lock = FileLock(str(downloads / f"{key}.lock"))
        warned = False
        while True:
            try:
                lock.acquire(timeout=0.3, poll_interval=0.1)
                break
            except Timeout:
                if cancelled():
                    raise Cancelled("The download was cancelled.") from None
                if not warned:
                    waiting()
                    warned = True
    try:
        with as_sentence(target_folder):
            folder = downloads / key
            if folder.is_symlink():
                folder.unlink()
            folder.mkdir(exist_ok=True)
            whole = folder / remote.target_name
            part = folder / "content.part"
            for left in folder.iterdir():  # killed between the last byte and the end of the checks
                if left.name not in (part.name, "download.json") and left.is_file() and not part.exists():
                    left.replace(part)
            about = {"reference": str(remote), "name": remote.target_name, "size": remote.size}
            note = folder / "download.json"
            if note.exists() and not note.is_file():
                note.unlink()  # a pipe would wait for a reader
            note.write_text(json.dumps(about), encoding="utf-8")
            if not whole.exists():  # a name that this file system does not take is reported before the download
                whole.touch()
                whole.unlink()
        yield Staging(folder, part, whole)
    finally:
        lock.release()


def hidden_folder(target_folder: Path, name: str) -> Path:
    """A folder for our own files in the target folder, made when it is not there.

    Raises:
        DownloadError: it is a symbolic link, which may lead to another file system.
    """
    folder = target_folder / HIDDEN / name
    for level in (folder.parent, folder):
        if level.is_symlink():
            raise DownloadError(f"{level} is a symbolic link; downloads need a real folder there. Remove the link.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def partial_downloads(target_folder: Path | str) -> list[PartialDownload]:
    """Downloads into a folder that are not finished; starting one again continues it."""
    found = []
    folder = Path(target_folder) / HIDDEN / DOWNLOADS
    try:
        notes = [folder / name / "download.json" for name in sorted(os.listdir(folder))]
    except OSError:  # there are none; if the folder is closed to us, the next download says so
        return []
    for about in notes:
        if not os.path.isfile(about):
            continue
        try:
            data = json.loads(about.read_text(encoding="utf-8"))
            done = about.with_name("content.part").stat().st_size
            size = data["size"] if isinstance(data["size"], int) else None
            found.append(PartialDownload(str(data["reference"]), str(data["name"]), done, size, about.parent))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def check_space(folder: Path, missing: int, what: str) -> None:
    """Raise DownloadError unless ``missing`` more bytes fit on the disk of ``folder``, with some to spare."""
    free = shutil.disk_usage(folder).free
    if free < missing + SPARE_BYTES:
        raise DownloadError(
            f"{what} needs {size_text(missing)} more, and the disk of {folder} has {size_text(free)} free: "
            "make room and start again."
        )


def free_name(folder: Path, name: str) -> str:
    """``name``, or with a number when that is taken."""
    number = 1
    candidate = name
    while os.path.lexists(folder / candidate):
        number += 1
        candidate = numbered(name, number)
    return candidate


def place(source: Path, target: Path) -> None:
    """Give a finished file its name, in one step and never over another file.

    Raises:
        FileExistsError: the name was taken in the meantime. ``source`` is untouched.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":  # a rename there fails when the name is taken, which is what is wanted
        os.rename(source, target)
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.EXDEV:  # another file system: copy out of sight first
            copy = own_part(target)
            try:
                shutil.copyfile(source, copy)
                flush(copy)
                place(copy, target)
            finally:
                copy.unlink(missing_ok=True)
            source.unlink()
            return
        # No hard links here (exFAT, some network drives): take the name with an empty file and replace that.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            os.replace(source, target)
        except OSError:
            target.unlink()
            raise
        return
    source.unlink()


def own_part(target: Path) -> Path:
    """A path next to ``target`` to write to out of sight, that nobody else uses."""
    return hidden_folder(target.parent, DOWNLOADS) / f"{target.name}.{uuid.uuid4().hex[:12]}.part"


def quarantine(file: Path, target_folder: Path, name: str, reason: str) -> Path:
    """Move a file that failed a check out of the way, with the reason beside it as ``.reason.txt``."""
    folder = hidden_folder(target_folder, QUARANTINE)
    # The second extension keeps every program from taking it for weights.
    bad = folder / free_name(folder, f"{name}.quarantined")
    os.replace(file, bad)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    bad.with_name(f"{bad.name}.reason.txt").write_text(f"{when}\n{reason}\n", encoding="utf-8")
    return bad


def flush(file: Path) -> None:
    """Make sure that the bytes are on the disk before the name is."""
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())


@contextlib.contextmanager
def as_sentence(folder: Path) -> Iterator[None]:
    """Turn what a file system refuses into a DownloadError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
            raise DownloadError(
                f"The disk of {folder} is full: make room and start again; what has arrived is kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DownloadError(f"{folder} cannot be written to ({error.strerror}): check its permissions.") from error
        if os.name == "nt" and error.filename is not None and len(str(error.filename)) >= LONGEST_ON_WINDOWS:
            raise DownloadError(
                f"{error.filename} has {len(str(error.filename))} letters, and Windows takes fewer than "
                f"{LONGEST_ON_WINDOWS} in a path unless long paths are switched on: choose a folder with a shorter one."
            ) from error
        raise DownloadError(f"{folder} cannot be used for downloads: {error.strerror or error}.") from error
