"""What a user may type to name a file on the hub."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, unquote, urlsplit

from vae_lib.catalog.files import Catalog, CatalogEntry
from vae_lib.catalog.names import is_plain_path
from vae_lib.errors import DownloadError

# Hosts whose addresses name repositories of the hub; that of HF_ENDPOINT is added. Wherever an address comes
# from, the file is fetched from the endpoint in use.
HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})

_LONGEST = 2000  # characters; addresses are longer than names
_QUERY = re.compile(r"\?.*", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A repository, and within it a file, a folder or neither (``path`` is None)."""

    repo_id: str
    path: str | None = None
    revision: str | None = None
    entry: CatalogEntry | None = None

    def readings(self) -> Iterator[Reference]:
        """This, and what else it may mean: names of branches may have slashes, as the beginning of a path has."""
        yield self
        parts = (self.path or "").split("/") if self.revision and self.path else []
        for count in range(1, len(parts) + 1):
            revision, path = "/".join((self.revision or "", *parts[:count])), "/".join(parts[count:])
            yield replace(self, revision=revision, path=path or None)

    def __str__(self) -> str:
        text = self.repo_id + (f"@{self.revision}" if self.revision else "")
        return f"{text}/{self.path}" if self.path else text


def parse_reference(text: str, catalog: Catalog, endpoint: str) -> Reference:
    """Understand a catalog id, ``owner/name[@revision][/path]`` or an address on the hub, with or without https://.

    Addresses: the ``resolve``, ``blob``, ``raw`` and ``tree`` forms with their revision, a repository's page,
    and ``hf://owner/name[@revision]/path``; on huggingface.co, hf.co, a known mirror or the host of
    ``endpoint``.

    Raises:
        DownloadError: the text is none of these.
    """
    if len(text) > _LONGEST:
        raise DownloadError(f"That is no name of a file on the hub: it has {len(text)} characters.")
    text = _QUERY.sub("", text.strip()).rstrip("/")  # a query may hold a token, and means nothing here
    if not text:
        raise DownloadError("Name a file to download: a catalog id, 'owner/name', or an address on the hub.")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):  # Cs: half of a letter
        raise DownloadError("That is no name of a file on the hub: it has characters that no name has.")
    entry = catalog.by_id(text)
    if entry is not None:
        return Reference(entry.repository, entry.file, entry.revision, entry)
    if re.match(r"https?://", text, re.IGNORECASE):
        return _from_url(text, endpoint)
    if text.lower().startswith("hf://"):
        text = text[len("hf://") :]
    elif text.split("/")[0].lower() in HUB_HOSTS | {_place(urlsplit(endpoint))}:
        return _from_url(f"https://{text}", endpoint)
    if "/" not in text:
        near = difflib.get_close_matches(text.lower(), [entry.id for entry in catalog.entries], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "a repository is named 'owner/name'."
        raise DownloadError(f"{text!r} is not in the catalog; {hint}")
    owner, name, *rest = text.split("/")
    name, _, revision = name.partition("@")
    revision, rest = _whole_revision(revision, rest)
    return _checked(owner, name, "/".join(rest), revision)


def _from_url(text: str, endpoint: str) -> Reference:
    base = urlsplit(endpoint)
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise DownloadError(f"{text} is not an address; those on the hub begin with {endpoint}.") from error
    host = (url.hostname or "").lower()
    path = url.path
    if _place(url) == _place(base):
        prefix = base.path.rstrip("/")
        path = path[len(prefix) :] if prefix and path.startswith(prefix + "/") else path
    elif host not in HUB_HOSTS:
        raise DownloadError(
            f"{host or text} is not the Hugging Face hub; only files on the hub or on the mirror that "
            "HF_ENDPOINT names can be fetched."
        )
    # Before decoding: an encoded slash is part of a revision (refs%2Fpr%2F1), not a separator.
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if parts[0] in ("datasets", "spaces", "api", "models"):
        if parts[0] != "models":
            raise DownloadError(f"{text} is not a model repository of the hub, which looks like {endpoint}/owner/name.")
        parts = parts[1:]
    if len(parts) < 2:
        raise DownloadError(f"{text} does not name a repository, which looks like {endpoint}/owner/name.")
    owner, name, *rest = parts
    if not rest:
        return _checked(owner, name, "", "")
    form, *rest = rest
    if form not in ("resolve", "blob", "raw", "tree") or not rest:
        raise DownloadError(f"{text} is neither a file nor a folder of a repository.")
    revision, rest = _whole_revision(rest[0], rest[1:])
    return _checked(owner, name, "/".join(rest), revision)


def _place(url: SplitResult) -> str:
    """The host that an address names, and its port."""
    return url.netloc.rpartition("@")[2].lower()


def _whole_revision(first: str, rest: list[str]) -> tuple[str, list[str]]:
    """refs/pr/1 and refs/convert/parquet, written without encoding; other names may go on, too: see ``readings``."""
    if first == "refs" and len(rest) >= 2:
        return "/".join((first, *rest[:2])), rest[2:]
    return first, rest


def _checked(owner: str, name: str, path: str, revision: str) -> Reference:
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)) or ".." in name or "--" in name:
        raise DownloadError(f"'{owner}/{name}' is not the name of a repository on the hub, which is 'owner/name'.")
    if path and not is_plain_path(path):
        raise DownloadError(f"{path!r} is not a path inside a repository.")
    if revision and (not is_plain_path(revision) or len(revision) > 250):
        raise DownloadError(f"{revision!r} is not a revision.")
    return Reference(f"{owner}/{name}", path or None, revision or None)
