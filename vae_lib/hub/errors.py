"""Failed downloads that a caller can do something about; each says in ``str()`` what the user can do."""

from __future__ import annotations

from pathlib import Path

from vae_lib.errors import DownloadError


class AmbiguousReference(DownloadError):
    """Several files fit the reference. ``candidates`` are complete references, the likeliest first."""

    def __init__(self, message: str, candidates: tuple[str, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class RevisionNotFound(DownloadError):
    """The repository has no such branch, tag or commit."""


class PickleRefused(DownloadError):
    """The file is a pickle and nobody agreed to one: ``reference`` with ``allow_pickle=True`` fetches it."""

    def __init__(self, message: str, reference: str) -> None:
        super().__init__(message)
        self.reference = reference


class GatedRepository(DownloadError):
    """The licence must be accepted at ``url`` first, with the account whose token is used."""

    def __init__(self, message: str, url: str) -> None:
        super().__init__(message)
        self.url = url


class TargetExists(DownloadError):
    """Another file has the name. Nothing was overwritten; ``free_name`` is what ``on_conflict="rename"``
    takes.
    """

    def __init__(self, message: str, path: Path, free_name: str) -> None:
        super().__init__(message)
        self.path = path
        self.free_name = free_name


class VerificationError(DownloadError):
    """The file is not what it should be. It lies at ``quarantined``, with the reason beside it."""

    def __init__(self, message: str, quarantined: Path) -> None:
        super().__init__(message)
        self.quarantined = quarantined
