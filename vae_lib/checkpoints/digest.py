"""SHA-256 of files, computed once per state of a file and process."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

_CHUNK = 1 << 20
_cache: dict[tuple[str, int, int], str] = {}
_lock = threading.Lock()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks; cached by path, size and time of change.

    Raises:
        OSError: when the file cannot be read.
    """
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    with _lock:
        if key in _cache:
            return _cache[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    with _lock:
        _cache[key] = digest.hexdigest()
        return _cache[key]
