"""The catalog of files: VAEs that people use, with what is known of them for certain (``files.toml``)."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vae_lib.catalog.families import FAMILIES
from vae_lib.catalog.names import is_pickle, safe_name
from vae_lib.errors import InputError

CATALOG_FILE = Path(__file__).with_name("files.toml")

KINDS = ("AutoencoderKL", "WanVAE", "TAESD")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class KnownFile:
    """A file whose SHA-256 tells what it is.

    ``family`` is one of ``FAMILIES``, ``kind`` one of ``KINDS``. ``sha256`` is lower case hex; ``None`` where
    it is not known for certain (then the hub's own LFS object id is what a download is verified against).
    """

    title: str
    family: str
    kind: str
    sha256: str | None

    @property
    def name(self) -> str:
        """What a sentence calls the file."""
        return self.title


@dataclass(frozen=True)
class CatalogEntry(KnownFile):
    """A file on the Hugging Face hub that the catalog offers. ``size`` is in bytes, None where unknown."""

    id: str
    repository: str
    file: str
    licence: str
    purpose: str
    revision: str | None = None
    save_as: str | None = None
    size: int | None = None
    gated: bool = False
    pickle: bool = False
    also: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        """The repository's page, where its licence is read and, for a gated one, accepted."""
        return f"https://huggingface.co/{self.repository}"


@dataclass(frozen=True)
class Catalog:
    entries: tuple[CatalogEntry, ...]
    known: tuple[KnownFile, ...] = ()

    def by_id(self, entry_id: str) -> CatalogEntry | None:
        """The entry of this id, whatever its case."""
        wanted = entry_id.strip().lower()
        return next((entry for entry in self.entries if entry.id == wanted), None)

    def by_sha256(self, sha256: str) -> KnownFile | None:
        """The file with this content: a :class:`CatalogEntry` where the catalog offers it."""
        return self._hashes.get(sha256.strip().lower())

    def by_file(self, repository: str, file: str) -> CatalogEntry | None:
        """The entry for a file on the hub; repository names there do not depend on case."""
        return next(
            (entry for entry in self.entries if entry.repository.lower() == repository.lower() and entry.file == file),
            None,
        )

    def taesd_for(self, family: str) -> CatalogEntry | None:
        """The tiny autoencoder of a family, which may be listed under another of the same latents (SD1 for SD2)."""
        stem = FAMILIES[family].taesd_stem if family in FAMILIES else None
        tiny = (entry for entry in self.entries if entry.kind == "TAESD")
        return next((entry for entry in tiny if stem and FAMILIES[entry.family].taesd_stem == stem), None)

    @functools.cached_property
    def _hashes(self) -> Mapping[str, KnownFile]:
        hashes: dict[str, KnownFile] = {}
        for file in (*self.known, *self.entries):
            for sha256 in (file.sha256, *(file.also if isinstance(file, CatalogEntry) else ())):
                if sha256 is not None:
                    hashes[sha256] = file
        return hashes


def load_catalog(path: Path | str | None = None) -> Catalog:
    """Read and check a catalog; without ``path`` the one of the package, which is read only once.

    Raises:
        InputError: it cannot be read or is not a valid catalog. The message names the entry and the field.
    """
    return _packaged_catalog() if path is None else _read(Path(path))


@functools.lru_cache(maxsize=1)
def _packaged_catalog() -> Catalog:
    return _read(CATALOG_FILE)


def _read(path: Path) -> Catalog:
    try:
        data = _parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise InputError(f"The catalog {path} cannot be read: {error}.") from error
    unknown = sorted(set(data) - {"entry", "known"})
    if unknown:
        raise InputError(f"The catalog {path} has tables it should not have: {', '.join(unknown)}.")
    entries = tuple(_build(CatalogEntry, table, path, n) for n, table in _tables(data, "entry", path))
    known = tuple(_build(KnownFile, table, path, n) for n, table in _tables(data, "known", path))
    _check_unique(entries, known, path)
    return Catalog(entries, known)


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise InputError(
                "The catalog of VAEs cannot be read: Python 3.10 has no TOML reader. Install one with 'pip "
                "install tomli'."
            ) from error
    return tomllib.loads(text)


def _tables(data: Mapping[str, Any], name: str, path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"The catalog {path} must list its files as [[{name}]] tables.")
    return list(enumerate(tables, start=1))


def _build(cls: type[Any], table: Mapping[str, Any], path: Path, number: int) -> Any:
    """One table as ``cls``, or an error that says which field of which entry is wrong and why."""
    name = table.get("id") or table.get("title") or f"number {number}"

    def wrong(reason: str) -> InputError:
        return InputError(f"The catalog {path} is wrong at entry {name!r}: {reason}.")

    known = {field.name for field in fields(cls)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise wrong(f"unknown field {unknown[0]!r}")
    for key, value in table.items():
        kind = {"size": int, "gated": bool, "pickle": bool, "also": list}.get(key, str)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise wrong(f"{key} must be of type {kind.__name__}")
        if isinstance(value, str) and (not value or value != value.strip()):
            raise wrong(f"{key} is empty or has spaces around it")
    values = dict(table) | {"sha256": table.get("sha256"), "also": tuple(table.get("also", ()))}
    if cls is KnownFile:
        del values["also"]
        if values["sha256"] is None:
            raise wrong("sha256 is missing")
    missing = sorted({"title", "family", "kind"} - set(values))
    if cls is CatalogEntry:
        missing += sorted({"id", "repository", "file", "licence", "purpose"} - set(values))
    if missing:
        raise wrong(f"{missing[0]} is missing")

    if values["family"] not in FAMILIES:
        raise wrong(f"family {values['family']!r} is none of {', '.join(FAMILIES)}")
    if values["kind"] not in KINDS:
        raise wrong(f"kind {values['kind']!r} is none of {', '.join(KINDS)}")
    for sha256 in (values["sha256"], *values.get("also", ())):
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise wrong(f"{sha256!r} is not a SHA-256 in 64 lower-case hex digits")
    if cls is CatalogEntry:
        if not _ID.fullmatch(values["id"]):
            raise wrong("an id has only lower-case letters, digits, dots and hyphens")
        if not _REPOSITORY.fullmatch(values["repository"]):
            raise wrong("repository must be 'owner/name'")
        if values.get("size", 1) <= 0:
            raise wrong("size must be positive")
        if is_pickle(values["file"]) != values.get("pickle", False):
            raise wrong("pickle must be true exactly for .ckpt, .pt, .pth and .bin files")
        save_as = values.get("save_as")
        if save_as is not None and save_as != safe_name(save_as):
            raise wrong(f"save_as {save_as!r} is not a plain file name")
    return cls(**values)


def _check_unique(entries: tuple[CatalogEntry, ...], known: tuple[KnownFile, ...], path: Path) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise InputError(f"The catalog {path} has two entries with the id {entry.id!r}.")
        seen.add(entry.id)
    hashes: set[str] = set()
    for file in (*entries, *known):
        for sha256 in (file.sha256, *(file.also if isinstance(file, CatalogEntry) else ())):
            if sha256 in hashes:
                raise InputError(f"The catalog {path} has two entries with the SHA-256 {sha256}.")
            if sha256 is not None:
                hashes.add(sha256)
