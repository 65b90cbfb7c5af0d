"""The one module that talks to the Hugging Face hub, through public functions of ``huggingface_hub`` alone.

The same code runs on every version from 0.16 (what the WebUI's transformers needs) to the newest: what
differs is the HTTP client behind ``get_session()``, requests up to 0.36, httpx or httpx2 from 1.0 on, and
:func:`_is_httpx` is the only place that knows. Proxies, certificates, ``HF_ENDPOINT``, ``HF_TOKEN`` and
saved tokens are the library's.

Bytes are streamed from the hub's ``resolve`` address into a file of ours instead of by ``hf_hub_download``:
its 2.x versions delete the partial file when they stop, so that neither a cancelled nor a killed download
could be resumed. The plain address also means that hf_xet, which neither resumes nor can be cancelled, has no
part in it: for files in Xet storage the hub redirects there to an ordinary HTTP server.
"""

from __future__ import annotations

import contextlib
import email.utils
import importlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

from vae_lib import __version__
from vae_lib.errors import Cancelled, DownloadError, without_user
from vae_lib.hub.errors import GatedRepository, RevisionNotFound

T = TypeVar("T")

HUB = "https://huggingface.co"

# Seconds without a single byte after which a connection counts as dead.
TIMEOUT = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 10)

# Attempts without any progress before giving up; seconds of wait after the first (it doubles) and at most.
METADATA_ATTEMPTS = 4
STREAM_ATTEMPTS = 6
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
LONGEST_RETRY_AFTER = 300.0

CHUNK = 64 * 1024
MOST_REDIRECTS = 5

_LOCAL = re.compile(r"(localhost|127\.[\d.]+|\[::1\])(:|/|$)", re.IGNORECASE)
_RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. ``sha256`` is the LFS object id; ``size`` is in bytes."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """The files of one commit of a repository."""

    repo_id: str
    commit: str
    files: Mapping[str, HubFile]
    gated: bool


@dataclass(frozen=True)
class FileMetadata:
    """What the hub says of a file when asked. ``etag`` is its SHA-256 (LFS) or its git blob's SHA-1."""

    size: int | None
    etag: str | None


@dataclass(frozen=True)
class Stream:
    """The answer to a GET: the HTTP status, headers with lower-case names, and the body in small pieces."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]


class AccessDenied(DownloadError):
    """HTTP 401 or 403 without a reason that would say more."""


class HTTPStatus(Exception):
    """An answer other than the wanted one, where only its number matters (416, mostly)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


def endpoint_in_use(endpoint: str | None = None) -> str:
    """The hub's address: ``endpoint``, or ``HF_ENDPOINT``, or huggingface.co; without a scheme, https is meant.

    Raises:
        DownloadError: it is not an address.
    """
    given = endpoint or str(_library().constants.ENDPOINT)
    address = given.strip() or HUB
    if "://" not in address:  # a mirror on this machine has no certificate
        address = f"{'http' if _LOCAL.match(address) else 'https'}://{address}"
    if not _is_address(address):
        shown = "an address that is not shown, as it may hold a password" if "@" in given else repr(given)
        raise DownloadError(
            f"HF_ENDPOINT is {shown}, which is not the address of a hub; set it to one such as {HUB}, or unset it."
            + (" Signs such as / and # in a password are written as %2F and %23." if "@" in given else "")
        )
    return address.rstrip("/")


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        _ = parts.port  # which may be no number
    except ValueError:
        return False
    is_whole = "@" not in parts.path + parts.query + parts.fragment  # else a password was cut by a sign in it
    return parts.scheme in ("http", "https") and bool(parts.hostname) and is_whole and not re.search(r"\s", address)


def never() -> bool:
    return False


@dataclass(frozen=True)
class Hub:
    """Whom to ask, and as whom.

    Attributes:
        endpoint: the hub's address; by default ``HF_ENDPOINT`` or huggingface.co.
        token: access token; by default ``HF_TOKEN`` or the one saved by ``huggingface-cli login``.
        cancelled: asked many times a second; once it is true, what is under way ends with Cancelled.
    """

    endpoint: str | None = None
    token: str | None = None
    cancelled: Callable[[], bool] = never

    @property
    def address(self) -> str:
        return endpoint_in_use(self.endpoint)

    def file_url(self, repo_id: str, path: str, revision: str) -> str:
        """The address of a file's bytes."""
        url: str = _library().hf_hub_url(repo_id, path, revision=revision)
        default = str(_library().constants.ENDPOINT)  # as it was set, blanks and all
        # hf_hub_url takes an endpoint in newer versions only.
        return self.address + url[len(default) :] if url.startswith(default) else url

    def repository(self, repo_id: str, revision: str | None = None) -> Repository:
        """The files of a repository at a revision (a branch, tag or commit; the default branch without one).

        Raises:
            DownloadError: with a sentence that says what is the matter and what helps.
            Cancelled: while waiting for another attempt.
        """
        library = _library()

        def ask() -> Repository:
            api = library.HfApi(endpoint=self.address)
            info = api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT, token=_token(self.token)
            )
            files = {}
            for sibling in info.siblings or ():
                lfs = sibling.lfs or {}
                size = lfs.get("size", sibling.size)
                files[sibling.rfilename] = HubFile(sibling.rfilename, size, lfs.get("sha256"))
            commit = info.sha or revision or "main"
            return Repository(repo_id, commit, files, bool(getattr(info, "gated", False)))

        return self._with_retries(ask, repo_id, revision)

    def metadata(self, repo_id: str, path: str, revision: str) -> FileMetadata:
        """Ask for a file without fetching it, which also tells whether one may have it; raises as `repository`."""
        utils = _library().utils

        def ask() -> FileMetadata:
            # get_hf_file_metadata would do, but in some versions it retries for half a minute and cannot be cancelled.
            session, headers = utils.get_session(), _headers(self.token)
            follow = {"follow_redirects" if _is_httpx(session) else "allow_redirects": False}
            url = self.file_url(repo_id, path, revision)
            for _ in range(MOST_REDIRECTS):
                response = session.head(url, headers=headers, timeout=TIMEOUT, **follow)
                location = response.headers.get("Location")
                if not location or urlsplit(location).netloc:  # a redirect to the storage is the answer
                    break
                url = urljoin(url, location)  # a repository that was renamed
            if response.status_code >= 400:
                utils.hf_raise_for_status(response)
            found = response.headers
            size = found.get("X-Linked-Size") or (None if location else found.get("Content-Length"))
            if size == "0" and not found.get("X-Linked-Size"):
                size = None  # some servers say so to every HEAD; the answer to the GET will tell
            etag = (found.get("X-Linked-Etag") or found.get("ETag") or "").removeprefix("W/").strip('"')
            return FileMetadata(int(size) if size and size.isdigit() else None, etag or None)

        return self._with_retries(ask, repo_id, revision, path)

    def sleep(self, seconds: float) -> None:
        """Wait, and raise Cancelled soon after the user says so."""
        end = time.monotonic() + seconds
        while True:
            if self.cancelled():
                raise Cancelled("The download was cancelled.")
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))

    def explain(
        self, error: BaseException, repo_id: str, revision: str | None = None, path: str | None = None
    ) -> DownloadError:
        """The sentence for an error of the library or of its HTTP client."""
        utils = _library().utils
        page = f"{without_user(self.address)}/{repo_id}"
        host = urlsplit(page).netloc
        status = _status(error)
        said = _server_message(error)
        if isinstance(error, utils.GatedRepoError):
            return self.gated(repo_id)
        if isinstance(error, utils.RevisionNotFoundError):
            return RevisionNotFound(
                f"{repo_id} has no revision {revision!r} on {host}; leave it out to get the newest."
            )
        if isinstance(error, utils.EntryNotFoundError):
            return DownloadError(f"{repo_id} has no file {path!r} at revision {revision or 'main'} on {host}.")
        if status == 401 and said and "credentials" in said.lower():
            return DownloadError(
                f"{host} refused the access token ({said.rstrip('.')}): set HF_TOKEN to a valid one, or unset it "
                "for public repositories."
            )
        if isinstance(error, utils.RepositoryNotFoundError):
            return DownloadError(
                f"There is no repository {repo_id} on {host} that can be read: check the spelling, and if it is "
                "private set HF_TOKEN to an access token that may read it."
            )
        if _is_offline(error):
            return offline_error()
        if isinstance(error, utils.HFValidationError):
            return DownloadError(f"{repo_id!r} is not the name of a repository on the hub, which is 'owner/name'.")
        if status in (401, 403):
            return AccessDenied(
                f"{host} denied access to {repo_id}{f' ({said})' if said else ''}: set HF_TOKEN to an access "
                f"token that may read it, and see {page} for conditions to accept."
            )
        if status == 429:
            return DownloadError(
                f"{host} answers that too many requests came from here: wait a few minutes and try again, or log "
                "in with HF_TOKEN for higher limits."
            )
        if status == 404:
            return DownloadError(f"{host} has no {repo_id}{f'/{path}' if path else ''}: check the spelling.")
        if status is not None:
            return DownloadError(
                f"{host} could not deliver {repo_id} (HTTP {status}{f', {said}' if said else ''}): try again "
                "later, or set HF_ENDPOINT to a mirror."
            )
        if isinstance(error, _transport_errors()):
            return DownloadError(
                f"The connection to {host} failed ({_reason(error)}): check the network and the proxy settings "
                "(HTTPS_PROXY), or set HF_ENDPOINT to a mirror."
            )
        return DownloadError(
            f"{host} answered with something that is not the hub's: a proxy or a login page may stand in "
            "between, or HF_ENDPOINT points to the wrong place."
        )

    def gated(self, repo_id: str) -> GatedRepository:
        """The sentence for a repository whose licence has to be accepted, on the hub that is in use."""
        url = f"{without_user(self.address)}/{repo_id}"
        elsewhere = "" if url.startswith(f"{HUB}/") else f" (or {HUB}/{repo_id}, if the mirror has no such page)"
        return GatedRepository(
            f"{repo_id} is gated: open {url}{elsewhere}, accept its licence there while logged in, then set HF_TOKEN "
            "to an access token of that account and try again.",
            url,
        )

    def _with_retries(self, ask: Callable[[], T], repo_id: str, revision: str | None, path: str | None = None) -> T:
        if is_offline():
            raise offline_error()
        attempt = 0
        while True:
            attempt += 1
            self.sleep(0)
            try:
                return ask()
            except Exception as error:
                if attempt < METADATA_ATTEMPTS and is_passing(error):
                    self.sleep(waiting_time(attempt, error))
                    continue
                # Beside the client's errors, only those of an answer that was not understood are expected.
                if not isinstance(error, (*_transport_errors(), ValueError, KeyError, TypeError, AttributeError)):
                    raise
                raise self.explain(error, repo_id, revision, path) from error


@contextlib.contextmanager
def open_stream(url: str, start: int = 0, token: str | None = None) -> Iterator[Stream]:
    """GET ``url`` from byte ``start`` on. Errors are the library's own: see `is_passing` and `explain`.

    Raises:
        HTTPStatus: 416, there is nothing at or after ``start``.
    """
    utils = _library().utils
    headers = _headers(token)
    if start:
        headers["Range"] = f"bytes={start}-"
    session = utils.get_session()
    with contextlib.ExitStack() as stack:
        # Both clients drop the Authorization header on the way to another host, which the hub's storage is.
        if _is_httpx(session):
            response = stack.enter_context(
                session.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True)
            )
            chunks = response.iter_bytes()
            if response.status_code >= 400:
                response.read()  # what the hub has to say, for the error
        else:
            response = session.get(url, headers=headers, timeout=TIMEOUT, stream=True)
            stack.callback(response.close)
            chunks = response.iter_content(CHUNK)
        if response.status_code == 416:
            raise HTTPStatus(416)
        utils.hf_raise_for_status(response)
        lower = {name.lower(): value for name, value in response.headers.items()}
        yield Stream(response.status_code, lower, chunks)


def is_passing(error: BaseException) -> bool:
    """True if the same request may succeed a little later: lost connections, 429, the server's own errors."""
    status = _status(error)
    if status is not None:
        return status in _RETRIED_STATUS
    if isinstance(error, RuntimeError) and "closed" in str(error):
        return True  # another thread lost its connection and closed the client that all of them share
    return isinstance(error, _transport_errors()) and not _is_offline(error)


def retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to wait (the header Retry-After, in either of its forms)."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    value = headers.get("Retry-After") if headers is not None else None
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def waiting_time(attempt: int, error: BaseException | None) -> float:
    """Seconds to wait after the failed attempt number ``attempt`` (from 1): what the server asks, or
    doubling.

    Part of it is random, so that clients that were cut off together do not come back together.
    """
    asked = retry_after(error) if error is not None else None
    if asked is not None:
        return asked
    return min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT) * random.uniform(0.75, 1.0)


def offline_error() -> DownloadError:
    return DownloadError(
        "Downloads are off because HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; unset it and restart to "
        "fetch files from the hub."
    )


def is_offline() -> bool:
    """True when HF_HUB_OFFLINE was set as huggingface_hub was imported; it has no effect later."""
    return bool(_library().constants.HF_HUB_OFFLINE)


def _library() -> Any:
    if given := os.environ.get("HF_ENDPOINT"):
        os.environ["HF_ENDPOINT"] = given.strip()  # a blank behind the port breaks the library's import, from 1.0 on
    try:
        library = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.utils")
        importlib.import_module("huggingface_hub.constants")
    except ImportError as error:
        raise DownloadError(
            "Downloads need the package huggingface_hub, which comes with the WebUI: install it with 'pip "
            "install huggingface_hub'."
        ) from error
    return library


def _is_httpx(session: Any) -> bool:
    return callable(getattr(session, "stream", None))  # of a requests.Session this is a flag


def _headers(token: str | None) -> dict[str, str]:
    build = _library().utils.build_hf_headers
    headers = dict(build(token=_token(token), library_name="vae-guard", library_version=__version__))
    # The bytes as they are stored: ranges and sizes are about those.
    return headers | {"Accept-Encoding": "identity"}


def _token(token: str | None) -> str | None:
    """``None`` leaves it to the library; versions without ``get_token`` do not look at HF_TOKEN."""
    if token is None and not hasattr(_library(), "get_token"):
        if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
            return None
        return os.environ.get("HF_TOKEN") or None
    return token


def _transport_errors() -> tuple[type[Exception], ...]:
    """Base classes of what the HTTP client raises: requests' or httpx's, from which the library derives."""
    foreign = [
        base
        for base in _library().utils.HfHubHTTPError.__mro__
        if base.__module__.partition(".")[0] not in ("huggingface_hub", "builtins")
    ]
    return (foreign[-1], OSError) if foreign else (OSError,)


def _is_offline(error: BaseException) -> bool:
    return type(error).__name__ == "OfflineModeIsEnabled"


def _status(error: BaseException) -> int | None:
    if isinstance(error, HTTPStatus):
        return error.status
    # A requests.Response with an error status is false, so "is not None" matters.
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None) if response is not None else None
    return status if isinstance(status, int) else None


def _server_message(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) if response is not None else None
    said = (headers.get("X-Error-Message") if headers is not None else None) or getattr(error, "server_message", None)
    return " ".join(re.sub(r"[^\x20-\x7e]+", " ", str(said)).split())[:200].rstrip(".") if said else None


# What requests and httpx say, in words for people. Their own texts go on for lines.
_REASONS = (
    (r"proxy", "the proxy did not let it through"),
    (r"ssl|certificate", "the certificate was not accepted"),
    (r"timed?[ _]?out", "no answer in time"),
    (r"NameResolution|getaddrinfo|name or service|nodename|name resolution", "its name is not known here"),
    (r"refused", "nobody answers there"),
    (r"unreachable|no route", "there is no route to it"),
)


def _reason(error: BaseException) -> str:
    text = f"{type(error).__name__} {error}"
    return next((words for found, words in _REASONS if re.search(found, text, re.IGNORECASE)), "it broke off")
