"""Several downloads at once, in threads of their own: a generation or the interface never waits for one."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vae_lib.catalog.files import Catalog, load_catalog
from vae_lib.errors import Cancelled, VAEGuardError, without_user
from vae_lib.hub.client import endpoint_in_use
from vae_lib.hub.download import DownloadedFile, OnConflict, pull
from vae_lib.hub.progress import Progress
from vae_lib.hub.reference import parse_reference

State = Literal["queued", "running", "done", "failed", "cancelled"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A download as it was when it was asked for; it does not change afterwards.

    ``message`` is one line for people, ``done`` and ``total`` are bytes. ``result`` is there when ``state`` is "done";
    ``error`` when it is "failed": its type tells whether a choice of the user's would help (TargetExists,
    AmbiguousReference, PickleRefused, GatedRepository).
    """

    id: str
    reference: str
    state: State
    message: str
    done: int = 0
    total: int | None = None
    result: DownloadedFile | None = None
    error: VAEGuardError | None = None

    @property
    def active(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def fraction(self) -> float | None:
        """From 0 to 1, None while the size is not known."""
        if self.state == "done":
            return 1.0
        return min(self.done / self.total, 1.0) if self.total else None


@dataclass
class _Task:
    job: Job
    allow_pickle: bool
    on_conflict: OnConflict
    cancelled: threading.Event
    over: threading.Event


class DownloadManager:
    """Runs downloads into the VAE folders, a few at a time. Every method may be called from any thread.

    Args:
        folder: where VAEs go (``models/VAE`` or ``--vae-dir``).
        taesd_folder: where TAESD goes (``models/VAE-taesd``).
        workers: downloads at once; more wait in line.
        on_finished: called with the finished job (done, failed or cancelled), in the thread of the download.
        endpoint, token, catalog: as for :func:`pull`.
    """

    def __init__(
        self,
        folder: Path | str,
        taesd_folder: Path | str | None = None,
        *,
        workers: int = 2,
        on_finished: Callable[[Job], None] | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        catalog: Catalog | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.taesd_folder = None if taesd_folder is None else Path(taesd_folder)
        self._workers = max(workers, 1)
        self._on_finished = on_finished
        self._endpoint = endpoint
        self._token = token
        self._catalog = catalog
        self._lock = threading.Lock()
        self._tasks: dict[str, _Task] = {}
        self._numbers = itertools.count(1)
        self._waiting: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, reference: str, *, allow_pickle: bool = False, on_conflict: OnConflict = "ask") -> str:
        """Queue a download and return its job's id at once.

        A reference that is being downloaded already keeps its job, whose id is returned.

        Raises:
            DownloadError: the reference can be no name of a file on the hub.
        """
        reference = self._cleaned(reference)
        with self._lock:
            for task in self._tasks.values():
                if task.job.active and task.job.reference == reference and not task.cancelled.is_set():
                    return task.job.id
            job = Job(f"download-{next(self._numbers)}", reference, "queued", f"{reference} is waiting its turn.")
            task = _Task(job, allow_pickle, on_conflict, threading.Event(), threading.Event())
            self._tasks[job.id] = task
            self._waiting.put(task)
            if len(self._threads) < min(self._workers, sum(t.job.active for t in self._tasks.values())):
                # A daemon: leaving the WebUI in the middle of a download must not hang. What arrived is kept.
                thread = threading.Thread(target=self._work, name="vae-guard-download", daemon=True)
                self._threads.append(thread)
                thread.start()
        return job.id

    def _cleaned(self, reference: str) -> str:
        """A short form of it, without what else an address may hold: it is shown as long as the job is."""
        catalog = load_catalog() if self._catalog is None else self._catalog
        entry = catalog.by_id(reference.strip())
        if entry is not None:  # needs no hub
            return entry.id
        return str(parse_reference(reference, catalog, endpoint_in_use(self._endpoint)))

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, the oldest first."""
        with self._lock:
            return tuple(task.job for task in self._tasks.values())

    def job(self, job_id: str) -> Job | None:
        with self._lock:
            task = self._tasks.get(job_id)
            return None if task is None else task.job

    def cancel(self, job_id: str) -> bool:
        """Stop a job soon; what has arrived is kept for the next time. False if there is nothing to stop."""
        with self._lock:
            task = self._tasks.get(job_id)
            if task is None or not task.job.active:
                return False
            waiting = task.job.state == "queued" and not task.cancelled.is_set()
            task.cancelled.set()
            if task.job.state == "running":
                task.job = replace(task.job, message="Stopping.")
        if waiting:
            self._finish(task, "cancelled", "The download was cancelled before it began.")
        return True

    def wait(self, job_id: str, timeout: float | None = None) -> Job | None:
        """The job once it is over, or as it is after ``timeout`` seconds; None for an unknown id."""
        with self._lock:
            task = self._tasks.get(job_id)
        if task is None:
            return None
        task.over.wait(timeout)
        return self.job(job_id) or task.job

    def close(self, timeout: float | None = 5.0) -> None:
        """Cancel everything, wait for the running downloads to stop, and end the threads."""
        for job in self.jobs():
            self.cancel(job.id)
        deadline = None if timeout is None else time.monotonic() + timeout
        for job in self.jobs():
            self.wait(job.id, None if deadline is None else max(deadline - time.monotonic(), 0))
        with self._lock:
            for _ in self._threads:
                self._waiting.put(None)
            self._threads.clear()

    def _work(self) -> None:
        while True:
            task = self._waiting.get()
            if task is None:
                return
            try:
                self._run(task)
            except BaseException:  # a bug; the thread must live on for the other downloads
                _log_error(f"The download of {task.job.reference} ended with an unexpected error.")
                self._finish(task, "failed", "An unexpected error ended the download; see the log.")

    def _run(self, task: _Task) -> None:
        with self._lock:
            if task.cancelled.is_set():  # cancel() has finished it
                return
            task.job = replace(task.job, state="running", message=f"Asking the hub for {task.job.reference}.")
        try:
            result = pull(
                task.job.reference,
                self.folder,
                taesd_folder=self.taesd_folder,
                allow_pickle=task.allow_pickle,
                on_conflict=task.on_conflict,
                progress=lambda progress: self._progressed(task, progress),
                cancelled=task.cancelled.is_set,
                endpoint=self._endpoint,
                token=self._token,
                catalog=self._catalog,
            )
        except Cancelled as error:
            self._finish(task, "cancelled", str(error))
        except VAEGuardError as error:
            error.__cause__ = error.__context__ = None  # they hold a whole repository's list of files, as frames do
            self._finish(task, "failed", str(error), error=error.with_traceback(None))
        else:
            size = result.identity.file_size
            verb = "is downloaded" if result.bytes_fetched else "was here already"
            verified = "verified" if result.verified_by else "could not be verified, as the hub gave no hash"
            self._change(task, done=size, total=size)
            self._finish(task, "done", f"{result.path.name} {verb} and {verified}.", result=result)

    def _progressed(self, task: _Task, progress: Progress) -> None:
        if not task.cancelled.is_set():
            self._change(task, message=progress.message, done=progress.done, total=progress.total)

    def _finish(self, task: _Task, state: State, message: str, **found: object) -> None:
        """``found``: a ``result`` or an ``error``."""
        self._change(task, state=state, message=message, **found)
        try:
            if self._on_finished is not None:
                self._on_finished(task.job)
        except Exception:
            _log_error(f"What should happen after the download of {task.job.reference} failed.")
        finally:
            task.over.set()

    def _change(self, task: _Task, **values: object) -> None:
        with self._lock:
            task.job = replace(task.job, **values)  # type: ignore[arg-type]


def _log_error(what: str) -> None:
    """With the traceback of the error that is being handled, in which the hub's address may stand."""
    log.error("%s\n%s", what, without_user(traceback.format_exc()))
