"""Bring the bytes of one file here, continuing where an earlier attempt or an earlier run stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from vae_lib.errors import Cancelled, DownloadError
from vae_lib.hub import client
from vae_lib.hub.progress import Meter
from vae_lib.hub.remote import MAX_BYTES, RemoteFile
from vae_lib.hub.staging import Staging, as_sentence, check_space
from vae_lib.units import size_text


@dataclass
class Fetched:
    """``done`` bytes are here: ``fetched`` came over the network now, ``resumed_from`` were here already."""

    done: int = 0
    fetched: int = 0
    resumed_from: int = 0


class _NotContinued(Exception):
    """The server does not send the rest from where we asked."""


def fetch(remote: RemoteFile, staging: Staging, folder: Path, meter: Meter, hub: client.Hub) -> Fetched:
    """Complete ``staging.part``. Passing failures are retried for as long as there is progress in between.

    Raises:
        DownloadError: it cannot be completed; what has arrived is kept.
        Cancelled: likewise.
    """
    state = Fetched()
    with as_sentence(folder):
        state.done = state.resumed_from = staging.done()
        if remote.size is not None:
            if state.done > remote.size:
                _start_over(state, staging)
            check_space(folder, remote.size - state.done, remote.target_name)
    meter.start_at(state.done)
    meter.report("downloading")
    failures = restarts = best = 0
    while remote.size is None or state.done < remote.size:
        if client.is_offline():
            raise client.offline_error()
        problem: Exception | None = None
        try:
            _stream(remote, staging, folder, meter, state, hub)
            if remote.size is None:
                if not state.done:
                    raise DownloadError(
                        f"The hub sent an empty file for {remote}: try again later, or choose another file."
                    )
                break
        except (client.HTTPStatus, _NotContinued) as error:
            problem = error
            _start_over(state, staging)
            meter.start_at(0)
            restarts += 1
        except (Cancelled, DownloadError):
            raise
        except Exception as error:
            if not client.is_passing(error):
                raise _explained(error, remote) from error
            problem = error
        if remote.size is not None and state.done >= remote.size:
            break
        # Only to get further than ever is progress: a server that makes us start over must not keep us busy.
        failures = 1 if state.done > best else failures + 1
        best = max(best, state.done)
        if failures >= client.STREAM_ATTEMPTS or restarts > 1:
            raise _gave_up(problem, remote, state.done, best)
        wait = client.waiting_time(failures, problem)
        meter.report("retrying", f"Interrupted; trying again in {wait:.0f} s.")
        hub.sleep(wait)
    return state


def _stream(remote: RemoteFile, staging: Staging, folder: Path, meter: Meter, state: Fetched, hub: client.Hub) -> None:
    """One request: append what it brings."""
    if hub.cancelled():
        raise _cancelled(remote, state.done)
    with client.open_stream(remote.url, state.done, hub.token) as stream:
        if stream.status != 206 and state.done:  # the server does not do ranges: it sends all of it again
            state.done = state.resumed_from = 0
            meter.start_at(0)
        elif stream.status == 206 and _first_byte(stream) != state.done:
            raise _NotContinued
        with as_sentence(folder):
            part = _open_at(staging.part, state.done)
        with part:
            for chunk in stream.chunks:
                with as_sentence(folder):
                    _write_all(part, chunk)
                state.done += len(chunk)
                state.fetched += len(chunk)
                meter.add(len(chunk))
                if hub.cancelled():
                    raise _cancelled(remote, state.done)
                if state.done > (MAX_BYTES if remote.size is None else remote.size):
                    return  # more than announced: the check of the size will say so


def _open_at(path: Path, start: int) -> BinaryIO:
    """Open for writing from ``start`` on, dropping anything behind it; never through a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o644), "wb", buffering=0)
    file.truncate(start)
    file.seek(start)
    return file


def _write_all(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _first_byte(stream: client.Stream) -> int | None:
    """Where a partial answer starts, by its Content-Range."""
    unit, _, given = stream.headers.get("content-range", "").partition(" ")
    start = given.partition("-")[0].strip()
    return int(start) if unit.lower() == "bytes" and start.isdigit() else None


def _start_over(state: Fetched, staging: Staging) -> None:
    staging.part.unlink(missing_ok=True)
    state.done = state.resumed_from = 0


def _cancelled(remote: RemoteFile, done: int) -> Cancelled:
    return Cancelled(
        f"The download of {remote.target_name} was cancelled; the {size_text(done)} that arrived are kept, "
        "and the next download continues from there."
    )


def _gave_up(problem: Exception | None, remote: RemoteFile, done: int, best: int) -> DownloadError:
    if problem is None or isinstance(problem, (client.HTTPStatus, _NotContinued)):
        return DownloadError(
            f"The hub sends only {size_text(best)} of the {size_text(remote.size or 0)} of {remote}: try again later."
        )
    kept = f" The {size_text(done)} that arrived are kept for the next attempt." if done else ""
    return DownloadError(f"{_explained(problem, remote)}{kept}")


def _explained(error: Exception, remote: RemoteFile) -> DownloadError:
    url = urlsplit(remote.url)
    hub = client.Hub(f"{url.scheme}://{url.netloc}")
    return hub.explain(error, remote.repo_id, remote.revision, remote.filename)
