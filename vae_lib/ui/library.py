"""The files that the tab lists, identified at once and hashed in the background."""

from __future__ import annotations

import atexit
import queue
import threading
from dataclasses import dataclass
from pathlib import Path

from vae_lib.checkpoints import Identity, identify, state_beside
from vae_lib.errors import VAEGuardError
from vae_lib.ui.backend import Backend, VAEFile

HASH_AT_MOST_BYTES = 1 << 30  # whole checkpoints are larger, and no catalog lists them as VAEs

_State = tuple[str, int, int, object]  # path, bytes, time of change, what lies beside the file


@dataclass(frozen=True)
class Row:
    """A file and what it is, or the sentence that says why it cannot be used."""

    file: VAEFile
    identity: Identity | None
    problem: str | None = None
    hashing: bool = False

    @property
    def name(self) -> str:
        return self.file.name


class Library:
    """Identities of a backend's files, kept until a file changes, or what is read beside it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._known: dict[_State, Identity | str] = {}
        self._hashed: set[_State] = set()
        self._pending: set[_State] = set()
        self._queue: queue.SimpleQueue[_State | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def refresh(self) -> None:
        """Have the WebUI rescan its folders; without one they are read each time."""
        if self._backend.host is not None:
            self._backend.host.refresh_vaes()

    def rows(self) -> list[Row]:
        """All files in the backend's order; headers of new ones are read, and their hashing is begun."""
        return [self._row(file) for file in self._backend.files()]

    def row(self, name: str | None) -> Row | None:
        """The file of this name, if it is still there, or the checkpoint's own VAE."""
        own = self.own()
        if own is not None and own.name == name:
            return own
        found = next((file for file in self._backend.files() if file.name == name), None)
        return None if found is None else self._row(found)

    def own(self) -> Row | None:
        """The VAE inside the file of the checkpoint in use; None where there is none that can be read."""
        checkpoint = self._backend.checkpoint()
        if checkpoint is None:
            return None
        row = self._row(VAEFile(f"(in the checkpoint) {checkpoint.path.name}", checkpoint.path))
        return None if row.identity is None else row

    @property
    def hashing(self) -> int:
        """Files whose hash is still to come."""
        with self._lock:
            return len(self._pending)

    def names(self) -> list[str]:
        """Names of the files that can be used."""
        return [row.name for row in self.rows() if row.identity is not None]

    def _row(self, file: VAEFile) -> Row:
        if file.problem is not None:
            return Row(file, None, file.problem)
        try:
            status = file.path.stat()
        except OSError as error:
            return Row(file, None, f"{file.path} cannot be read: {error.strerror or error}.")
        state = (str(file.path), status.st_size, status.st_mtime_ns, state_beside(file.path))
        with self._lock:
            known = self._known.get(state)
        if known is None:
            known = _identify(file.path, hash_file=False)
            with self._lock:
                self._known.setdefault(state, known)
        if isinstance(known, str):
            return Row(file, None, known)
        with self._lock:
            if state not in self._hashed and status.st_size <= HASH_AT_MOST_BYTES:
                self._hashed.add(state)
                self._pending.add(state)
                self._queue.put(state)
                if self._worker is None:
                    self._worker = threading.Thread(target=self._hash, name="vae-guard-hash", daemon=True)
                    self._worker.start()
                    atexit.register(self._end)
            return Row(file, known, hashing=state in self._pending)

    def _end(self) -> None:
        """A thread that is inside PyTorch when the interpreter ends would take the process down with an abort."""
        with self._lock:
            self._pending.clear()
        self._queue.put(None)
        if self._worker is not None:
            self._worker.join()

    def _hash(self) -> None:
        while (state := self._queue.get()) is not None:
            with self._lock:
                if state not in self._pending:
                    continue
            found = _identify(Path(state[0]), hash_file=True)
            with self._lock:
                self._known[state] = found
                self._pending.discard(state)


def _identify(path: Path, *, hash_file: bool) -> Identity | str:
    try:
        return identify(path, hash_file=hash_file)
    except VAEGuardError as error:
        return str(error)
    except Exception as error:  # one odd file must not take the table away
        return f"{path.name} cannot be identified ({type(error).__name__}: {error})."
