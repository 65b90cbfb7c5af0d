"""From a reference to one file on the hub: which file of a repository is its VAE."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from vae_lib.catalog.files import Catalog, CatalogEntry, load_catalog
from vae_lib.catalog.names import WEIGHTS_EXTENSIONS, is_pickle, is_plain_path, is_weights, target_name, variant
from vae_lib.errors import DownloadError
from vae_lib.hub import client
from vae_lib.hub.errors import AmbiguousReference, PickleRefused, RevisionNotFound
from vae_lib.hub.reference import Reference, parse_reference

# No VAE of an image model comes near this; whole checkpoints are beyond it.
MAX_BYTES = 2 * 1024**3

# Folders and names of the other parts of a diffusion model.
_OTHER_FOLDERS = re.compile(
    r"unet|text_encoder.*|transformer.*|prior|safety_checker|image_encoder|tokenizer.*|scheduler|"
    r"feature_extractor|controlnet.*|loras?|embeddings|clip.*|diffusion_models|checkpoints|\..*",
    re.IGNORECASE,
)
_OTHER_NAMES = re.compile(
    r"(^|[^a-z])(lora|controlnet|unet|text_encoder|clip|t5xxl|optimizer|scheduler|random_states|"
    r"training_args|discriminator|\d{5}-of-\d{5})([^a-z]|$)",
    re.IGNORECASE,
)
_VAE_NAME = re.compile(r"vae|kl[-_]f\d|autoencoder|tae(sd|f\d)|first_stage|(^|[^a-z])ae([^a-z]|$)", re.IGNORECASE)
_VAE_FOLDER = re.compile(r"vaes?|vae[-_ ].*|.*[-_ ]vae", re.IGNORECASE)
_HALF = re.compile(r"(^|[^a-z])(encoder|decoder)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class RemoteFile:
    """One file on the hub, ready to be fetched.

    ``revision`` is a commit, ``size`` is in bytes. ``sha256`` is what the file must have: the LFS object id
    that the hub reports. Files outside LFS have their git blob's SHA-1 in ``git_sha1`` instead.
    ``target_name`` is the readable name under which it is saved.
    """

    repo_id: str
    filename: str
    revision: str
    size: int | None
    sha256: str | None
    git_sha1: str | None
    url: str
    entry: CatalogEntry | None
    gated: bool
    target_name: str

    def __str__(self) -> str:
        return f"{self.repo_id}/{self.filename}"


def resolve(
    reference: str, hub: client.Hub, *, allow_pickle: bool = False, catalog: Catalog | None = None
) -> RemoteFile:
    """Find the file that ``reference`` means (see :func:`parse_reference` for the forms).

    Of a repository with several files the VAE is chosen by name: safetensors before pickles, a whole
    autoencoder before half of one, names and folders that say VAE before others, full precision before fp16.

    Args:
        allow_pickle: take a ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` file too. Loading one can run code that
            its author put there, so it takes an explicit yes; it is checked without running any of it.

    Raises:
        AmbiguousReference: several files fit; the error lists them.
        PickleRefused: the file is a pickle and ``allow_pickle`` is False.
        GatedRepository: a licence must be accepted first, at the error's ``url``.
        DownloadError: everything else, with a sentence that says what is the matter.
        Cancelled: ``hub.cancelled()`` became true.
    """
    catalog = load_catalog() if catalog is None else catalog
    parsed = parse_reference(reference, catalog, hub.address)
    parsed, repository = _repository(parsed, hub)
    path = choose_file(repository, parsed, allow_pickle=allow_pickle)
    known = repository.files[path]
    try:
        asked = hub.metadata(parsed.repo_id, path, repository.commit)
    except client.AccessDenied:
        if repository.gated:  # a token without access to it may get a plain 403
            raise hub.gated(parsed.repo_id) from None
        raise
    etag = (asked.etag or "").lower()
    sha256 = (known.sha256 or (etag if re.fullmatch(r"[0-9a-f]{64}", etag) else "")).lower() or None
    git_sha1 = etag if sha256 is None and re.fullmatch(r"[0-9a-f]{40}", etag) else None
    size = known.size if known.size is not None else asked.size
    entry = _entry_for(parsed, path, sha256, catalog)
    if entry is not None and sha256 is None:
        sha256 = entry.sha256
    remote = RemoteFile(
        repo_id=parsed.repo_id,
        filename=path,
        revision=repository.commit,
        size=size,
        sha256=sha256,
        git_sha1=git_sha1,
        url=hub.file_url(parsed.repo_id, path, repository.commit),
        entry=entry,
        gated=repository.gated,
        target_name=(entry and entry.save_as) or target_name(parsed.repo_id, path),
    )
    if size == 0:
        raise DownloadError(
            f"{remote} is an empty file on the hub: choose another file, or tell its owner. Nothing was downloaded."
        )
    if size is not None and size > MAX_BYTES:
        raise DownloadError(
            f"{remote} has {size / 1e9:.1f} GB, which no VAE has: it is probably a whole checkpoint. Nothing "
            "was downloaded."
        )
    return remote


def _repository(parsed: Reference, hub: client.Hub) -> tuple[Reference, client.Repository]:
    """The repository at the revision that is meant, with the reading of the reference that it bears out."""
    missing: RevisionNotFound | None = None
    for reading in parsed.readings():
        try:
            return reading, hub.repository(reading.repo_id, reading.revision)
        except RevisionNotFound as error:
            missing = missing or error
    assert missing is not None
    raise missing


def _entry_for(parsed: Reference, path: str, sha256: str | None, catalog: Catalog) -> CatalogEntry | None:
    """The catalog's entry for a file; one with a hash stands for these bytes alone."""
    entry = parsed.entry or catalog.by_file(parsed.repo_id, path)
    if entry is None or sha256 in (None, entry.sha256):
        return entry
    if entry.sha256 is None:  # then it stands for what is at its revision
        return entry if parsed.revision in (None, entry.revision) else None
    if parsed.entry is None:  # asked for by name: a file like any other
        return None
    raise DownloadError(
        f"{entry.repository}/{entry.file} on the hub is no longer the file that the catalog knows as "
        f"{entry.id!r} (SHA-256 {str(sha256)[:12]} instead of {entry.sha256[:12]}). Nothing was downloaded; "
        f"if you trust the new file, ask for {entry.repository}/{entry.file} by name."
    )


def choose_file(repository: client.Repository, reference: Reference, *, allow_pickle: bool = False) -> str:
    """The path of the VAE in a repository. Raises as :func:`resolve`."""
    names = [name for name in repository.files if is_plain_path(name)]
    weights = [name for name in names if is_weights(name)]
    repo_id, path = reference.repo_id, reference.path
    if path in names and path is not None:
        if not is_weights(path):
            raise DownloadError(f"{repo_id}/{path} is not a weights file ({', '.join(WEIGHTS_EXTENSIONS)}).")
        return _allowed(path, reference, allow_pickle)
    if path is not None:
        inside = [name for name in weights if name.startswith(path + "/")]
        if not inside:
            near = difflib.get_close_matches(path, weights, n=3, cutoff=0.5) or weights[:3]
            hint = f" It has {', '.join(near)}." if near else ""
            raise DownloadError(f"{repo_id} has no file or folder {path!r}.{hint}")
        weights = inside
    # A folder that the user named is no longer a reason to leave its files out.
    below = len(path) + 1 if path else 0
    likely = [
        name for name in weights if not _is_other_part(name[below:]) and (repository.files[name].size or 0) <= MAX_BYTES
    ]
    if not likely:
        listed = f" It has {', '.join(sorted(weights)[:5])}; name one of them to get it." if weights else ""
        raise DownloadError(f"{reference} has no file that looks like the weights of a VAE.{listed}")

    best: list[str] = []
    for name in sorted(likely, key=_rank):
        if not best or _rank(name)[:-1] == _rank(best[0])[:-1]:
            best.append(name)
    best = _without_copies(best, repository)
    if len(best) > 1:
        candidates = tuple(f"{_with_revision(reference)}/{name}" for name in best)
        raise AmbiguousReference(
            f"{reference} has several files that may be meant: {', '.join(best[:8])}. Ask for one of them, "
            f"for example {candidates[0]}.",
            candidates,
        )
    return _allowed(best[0], reference, allow_pickle)


def _rank(name: str) -> tuple[bool, bool, int, bool, bool, str]:
    """Sorts the likeliest file first; the last element only makes the order definite."""
    path = PurePosixPath(name)
    folders = path.parts[:-1]
    generic = path.stem.startswith("diffusion_pytorch_model")
    if _VAE_NAME.search(path.stem) or (folders and folders[-1].lower() == "vae"):
        says_vae = 0
    elif any(_VAE_FOLDER.fullmatch(folder) for folder in folders):
        says_vae = 1
    else:
        says_vae = 2 if generic else 3
    return (
        is_pickle(name),
        bool(_HALF.search(path.stem)),
        says_vae,
        bool(variant(name)),
        generic,  # the WebUI itself loads the other layout without conversion
        name,
    )


def _is_other_part(name: str) -> bool:
    path = PurePosixPath(name)
    other = any(_OTHER_FOLDERS.fullmatch(part) for part in path.parts[:-1]) or _OTHER_NAMES.search(path.stem)
    return bool(other) and not _VAE_NAME.search(path.stem)


def _without_copies(names: Iterable[str], repository: client.Repository) -> list[str]:
    """One name for each content: repositories keep the same file under an old and a new name."""
    kept: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        kept.setdefault(repository.files[name].sha256 or name, name)
    return sorted(kept.values(), key=_rank)


def _allowed(path: str, reference: Reference, allow_pickle: bool) -> str:
    if not is_pickle(path) or allow_pickle:
        return path
    only = "" if reference.path else " and its repository has no safetensors file of it"
    raise PickleRefused(
        f"{reference.repo_id}/{path} is a pickle, a format that can carry code{only}. Allow pickles to "
        "download it: it is checked without running anything in it.",
        f"{_with_revision(reference)}/{path}",
    )


def _with_revision(reference: Reference) -> str:
    return reference.repo_id + (f"@{reference.revision}" if reference.revision else "")
