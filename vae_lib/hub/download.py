"""Fetch one file: into a hidden folder, resumed where it broke off, checked, and only then into its place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vae_lib.catalog.files import Catalog, CatalogEntry, load_catalog
from vae_lib.catalog.names import target_name
from vae_lib.checkpoints import FAMILIES, Identity, identify, load_vae, sha256_of
from vae_lib.errors import CheckpointError, DownloadError, without_user
from vae_lib.hub.client import Hub, never
from vae_lib.hub.errors import TargetExists, VerificationError
from vae_lib.hub.fetch import Fetched, fetch
from vae_lib.hub.progress import Callback, Meter
from vae_lib.hub.remote import RemoteFile, resolve
from vae_lib.hub.staging import Staging, as_sentence, flush, free_name, place, quarantine, staging_for
from vae_lib.hub.taesd import stem_of_family, taesd_stem, write_host_files
from vae_lib.units import size_text

OnConflict = Literal["ask", "rename"]
VerifiedBy = Literal["SHA-256", "git SHA-1"]


@dataclass(frozen=True)
class DownloadedFile:
    """A file in its place, checked in all that could be.

    ``verified_by`` names the hash of the hub or the catalog that it was compared with, None where there was none.
    ``bytes_fetched`` came over the network in this call, 0 when the file was here already; ``resumed_from``
    is how many an earlier call had left. ``identity`` is what the file is. ``also`` are further files that
    were written (the ``.pth`` halves of a TAESD).
    """

    path: Path
    identity: Identity
    sha256: str
    bytes_fetched: int
    resumed_from: int
    also: tuple[Path, ...] = ()
    verified_by: VerifiedBy | None = "SHA-256"


@dataclass(frozen=True)
class Folders:
    """Where VAEs go, and where a TAESD goes instead, with its halves also as the ``.pth`` files of the WebUI."""

    vae: Path
    taesd: Path | None = None

    def of(self, is_taesd: bool) -> Path:
        return self.taesd if is_taesd and self.taesd is not None else self.vae


def pull(
    reference: str,
    folder: Path | str,
    *,
    taesd_folder: Path | str | None = None,
    allow_pickle: bool = False,
    on_conflict: OnConflict = "ask",
    progress: Callback | None = None,
    cancelled: Callable[[], bool] = never,
    endpoint: str | None = None,
    token: str | None = None,
    catalog: Catalog | None = None,
) -> DownloadedFile:
    """Fetch what ``reference`` names: :func:`resolve` and :func:`download` in one call.

    A catalog entry that is here already is found by its hash, without asking the hub.

    Args:
        folder, taesd_folder: as in :class:`Folders`.
        endpoint, token, cancelled: as in :class:`Hub`.
    """
    catalog = load_catalog() if catalog is None else catalog
    folders = Folders(Path(folder), None if taesd_folder is None else Path(taesd_folder))
    entry, hub = catalog.by_id(reference), Hub(endpoint, token, cancelled)
    here = None if entry is None else _present(entry, folders, catalog)
    if here is not None:
        return here
    remote = resolve(reference, hub, allow_pickle=allow_pickle, catalog=catalog)
    return download(remote, folders, hub, on_conflict=on_conflict, progress=progress, catalog=catalog)


def download(
    remote: RemoteFile,
    folders: Folders,
    hub: Hub,
    *,
    on_conflict: OnConflict = "ask",
    progress: Callback | None = None,
    catalog: Catalog | None = None,
) -> DownloadedFile:
    """Fetch and check a file, and put it into its folder under its readable name.

    The file appears there at once and only when its size, its SHA-256 (the hub's and the catalog's) and its
    header are right: that it is a VAE, and of the family that the catalog says. Until then it lies in a
    hidden folder; what arrived stays there when the download is cancelled or broken off, and the next call
    continues it. A file that fails a check goes to quarantine. Lost connections, 429 and server errors are
    retried. The same file already in its place is verified and not fetched again.

    Args:
        on_conflict: what to do when another file has the name: ``"ask"`` raises TargetExists, ``"rename"``
            takes the next free ``name-2``. Nothing is ever overwritten.
        progress: called with a :class:`Progress`, about ten times a second, in the calling thread.

    Raises:
        TargetExists: another file has the name.
        VerificationError: the file failed a check and is in quarantine; the message has the reason.
        DownloadError: anything else that went wrong, with a sentence that says what to do.
        Cancelled: what has arrived is kept.
    """
    catalog = load_catalog() if catalog is None else catalog
    expects_taesd = taesd_stem(remote) is not None if remote.entry is None else remote.entry.kind == "TAESD"
    destination = folders.of(expects_taesd)
    meter = Meter(progress, remote.size)

    def waiting() -> None:
        meter.report("waiting", f"{remote.target_name} is being downloaded already; waiting for that.")

    here = _find_same(remote, folders, catalog)
    if here is not None:
        return here
    if _verified_by(remote) is not None:
        _free_target(remote, destination, on_conflict)  # ask before anything is fetched
    with staging_for(remote, destination, waiting, hub.cancelled) as staging:
        here = _find_same(remote, folders, catalog)
        if here is not None:  # somebody else has just put it there
            staging.remove()
            return here
        got = fetch(remote, staging, destination, meter, hub)
        meter.report("checking", f"Checking {remote.target_name}.")
        if got.resumed_from and _wrong_bytes(remote, staging.part, destination):
            # The bytes that an earlier run left are the likelier culprit: once more, from the start.
            staging.part.unlink()
            first = got.fetched
            got = fetch(remote, staging, destination, meter, hub)
            got = Fetched(got.done, got.fetched + first, 0)
            meter.report("checking", f"Checking {remote.target_name}.")
        identity, sha256 = _checked(remote, staging, destination, catalog)
        meter.report("saving", f"Saving {remote.target_name}.")
        destination = folders.of(identity.is_taesd)
        target = _put(remote, staging, destination, on_conflict)
    identity = dataclasses.replace(identity, path=target)
    also = _host_taesd(identity, target, taesd_stem(remote), folders.taesd)
    return DownloadedFile(target, identity, sha256, got.fetched, got.resumed_from, also, _verified_by(remote))


def _find_same(remote: RemoteFile, folders: Folders, catalog: Catalog) -> DownloadedFile | None:
    """The file itself, when it is in its place already: recognised by its hash, and not where the hub gives none."""
    for folder in filter(None, (folders.vae, folders.taesd)):
        path = folder / remote.target_name
        with as_sentence(folder):
            if not path.is_file() or remote.size not in (None, path.stat().st_size):
                continue
        if _verified_by(remote) is not None and not _wrong_bytes(remote, path, folder):
            known = _known_good(path, taesd_stem(remote), folders.taesd, catalog)
            return dataclasses.replace(known, verified_by=_verified_by(remote))
    return None


def _present(entry: CatalogEntry, folders: Folders, catalog: Catalog) -> DownloadedFile | None:
    """A catalog entry's file, when it is in its place already, by its hash alone."""
    in_folder = folders.of(entry.kind == "TAESD")
    path = in_folder / (entry.save_as or target_name(entry.repository, entry.file))
    with as_sentence(in_folder):
        if entry.sha256 is None or not path.is_file() or entry.size not in (None, path.stat().st_size):
            return None
        if sha256_of(path) != entry.sha256:
            return None
    stem = stem_of_family(entry.family) if entry.kind == "TAESD" else None
    return _known_good(path, stem, folders.taesd, catalog)


def _as_listed(path: Path) -> Path:
    """By the name that its folder lists, and so the WebUI: where case does not matter it may be another."""
    names = os.listdir(path.parent)
    same = (name for name in names if name.casefold() == path.name.casefold())
    return path if path.name in names else path.with_name(next(same, path.name))


def _known_good(path: Path, stem: str | None, taesd_folder: Path | None, catalog: Catalog) -> DownloadedFile:
    path = _as_listed(path)
    try:
        identity = identify(path, known=catalog.by_sha256)
    except CheckpointError as error:
        raise DownloadError(f"{path} is the file that was asked for, but it cannot be used: {error}") from error
    return DownloadedFile(path, identity, sha256_of(path), 0, 0, _host_taesd(identity, path, stem, taesd_folder))


def _free_target(remote: RemoteFile, folder: Path, on_conflict: OnConflict) -> Path:
    name = free_name(folder, remote.target_name)
    if name != remote.target_name and on_conflict == "ask":
        raise TargetExists(
            f"{folder / remote.target_name} exists already and is not the file of {remote}. Nothing was "
            f"overwritten: download it as {name}, or rename the file that is there.",
            folder / remote.target_name,
            name,
        )
    return folder / name


def _put(remote: RemoteFile, staging: Staging, folder: Path, on_conflict: OnConflict) -> Path:
    with as_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
        flush(staging.whole)
        there = folder / remote.target_name
        if _verified_by(remote) is None and there.is_file() and sha256_of(there) == sha256_of(staging.whole):
            staging.remove()
            return _as_listed(there)
        while True:
            target = _free_target(remote, folder, on_conflict)
            try:
                place(staging.whole, target)
            except FileExistsError:  # taken since we looked
                continue
            staging.remove()
            return target


def _wrong_bytes(remote: RemoteFile, path: Path, folder: Path) -> str | None:
    """Why a file's size or hash is not what the hub says, or None."""
    with as_sentence(folder):
        size = path.stat().st_size
        if remote.size is not None and size != remote.size:
            missing = "shorter" if size < remote.size else "longer"
            difference, announced = size_text(abs(size - remote.size)), size_text(remote.size)
            return f"it is {difference} {missing} than the {announced} that the hub announced."
        if remote.sha256 is not None and (sha256 := sha256_of(path)) != remote.sha256:
            return f"its SHA-256 is {sha256} instead of {remote.sha256}: damaged on the way, or another file."
        if remote.git_sha1 is not None and (sha1 := _git_sha1(path)) != remote.git_sha1:
            return f"its git hash is {sha1} instead of {remote.git_sha1}: damaged on the way, or another file."
    return None


def _verified_by(remote: RemoteFile) -> VerifiedBy | None:
    if remote.sha256 is not None:
        return "SHA-256"
    return None if remote.git_sha1 is None else "git SHA-1"


def _git_sha1(path: Path) -> str:
    """The SHA-1 under which git stores a file: the hub's ETag for files outside LFS."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _checked(remote: RemoteFile, staging: Staging, folder: Path, catalog: Catalog) -> tuple[Identity, str]:
    """What the finished file is and its SHA-256; a file that is not what it should be goes to quarantine."""
    reason = _wrong_bytes(remote, staging.part, folder)
    with as_sentence(folder):
        staging.part.replace(staging.whole)
        sha256 = sha256_of(staging.whole)
        if reason is None:
            try:
                identity = identify(staging.whole, known=catalog.by_sha256)
                reason = _unwanted(remote, identity)
                if reason is None and identity.is_taesd:  # small enough to see whether it loads, too
                    load_vae(staging.whole, kind="TAESD", hash_file=False)
                if reason is None:
                    return identity, sha256
            except CheckpointError as error:
                reason = str(error)
        bad = quarantine(
            staging.whole,
            folder,
            remote.target_name,
            f"{without_user(remote.url)}\nSHA-256 {sha256}\n{reason}",
        )
        staging.remove()
    raise VerificationError(
        f"{remote} was downloaded and is not used: {reason} It was moved to {bad}; delete it, or fetch it "
        "again if it should be right.",
        bad,
    )


def _unwanted(remote: RemoteFile, identity: Identity) -> str | None:
    """Why a VAE is not the one that was asked for, or None."""
    if identity.layout == "ldm in a checkpoint":
        return "it is a whole checkpoint, which belongs into models/Stable-diffusion."
    entry = remote.entry
    if entry is None:
        return None
    if identity.is_taesd != (entry.kind == "TAESD"):
        return f"its kind is {identity.kind}, and the catalog says that {entry.id} is of kind {entry.kind}."
    wanted, found = FAMILIES[entry.family], identity.family
    possible = identity.candidates if found is None else (found,)
    same = any(wanted.decodes_with(family) for family in possible)
    if not same:
        return f"it is a VAE of {identity.family_name}, and the catalog says that {entry.id} is one of {entry.family}."
    return None


def _host_taesd(identity: Identity, path: Path, stem: str | None, taesd_folder: Path | None) -> tuple[Path, ...]:
    if not identity.is_taesd or stem is None or taesd_folder is None:
        return ()
    with as_sentence(taesd_folder):
        return tuple(write_host_files(path, taesd_folder, stem))
