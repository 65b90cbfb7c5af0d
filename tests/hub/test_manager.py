"""Several downloads at once, seen from outside."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub.conftest import taesd_bytes, vae_bytes
from tests.hub.hub_server import HubServer
from vae_lib.errors import Cancelled, DownloadError
from vae_lib.hub import (
    AmbiguousReference,
    DownloadManager,
    GatedRepository,
    Job,
    PickleRefused,
    TargetExists,
    VerificationError,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manager(hub: HubServer, models: Path) -> Iterator[DownloadManager]:
    for letter in "abcd":
        hub.add(f"acme/{letter}", {f"{letter}.safetensors": vae_bytes(seed=ord(letter))})
    manager = DownloadManager(models / "VAE", models / "VAE-taesd", endpoint=hub.endpoint)
    yield manager
    hub.faults.clear()
    manager.close()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(manager: DownloadManager, job_id: str) -> Job:
    job = manager.wait(job_id, 120)
    assert job is not None
    assert not job.active
    return job


def test_a_job_keeps_a_short_form_of_its_reference(manager: DownloadManager, hub: HubServer) -> None:
    address = f"{hub.endpoint}/acme/a/resolve/main/a.safetensors?token=hf_secret"
    job = finished(manager, manager.start(address))
    assert (job.reference, job.state) == ("acme/a@main/a.safetensors", "done")
    for odd in ("acme/va\ud800e", "acme/a/\ud800", "acme/a\nb", "nope/", "/", "https://]"):
        with pytest.raises(DownloadError):
            manager.start(odd)
    assert len(manager.jobs()) == 1


def test_a_failed_job_keeps_its_error_and_nothing_else(manager: DownloadManager) -> None:
    job = finished(manager, manager.start("acme/none"))
    assert job.error is not None
    assert (job.error.__traceback__, job.error.__cause__, job.error.__context__) == (None, None, None)


def test_a_download_from_the_queue_to_the_folder(manager: DownloadManager, models: Path) -> None:
    job_id = manager.start("acme/a")
    job = finished(manager, job_id)
    assert (job.state, job.fraction, job.error) == ("done", 1.0, None)
    assert job.result is not None
    assert job.result.path == models / "VAE" / "a.safetensors"
    assert job.done == job.total == len(vae_bytes(seed=ord("a")))
    assert "downloaded and verified" in job.message
    again = finished(manager, manager.start("acme/a"))
    assert again.id != job_id
    assert "was here already" in again.message


def test_taesd_goes_to_its_folder(hub: HubServer, manager: DownloadManager, models: Path) -> None:
    hub.add("madebyollin/taesd", {"diffusion_pytorch_model.safetensors": taesd_bytes()})
    job = finished(manager, manager.start("madebyollin/taesd"))
    assert job.state == "done"
    assert (models / "VAE-taesd" / "taesd_decoder.pth").is_file()


@pytest.mark.slow
def test_start_returns_at_once_and_two_run_at_a_time(hub: HubServer, manager: DownloadManager) -> None:
    hub.fault("CDN GET", rate=600_000, times=4)
    jobs = [manager.start(f"acme/{letter}") for letter in "abcd"]
    assert manager.jobs()[-1].active  # the last of them cannot be over so soon
    most = 0
    while any(job.active for job in manager.jobs()):
        most = max(most, sum(job.state == "running" for job in manager.jobs()))
        time.sleep(0.01)
    assert most == 2
    assert [job.id for job in manager.jobs()] == jobs
    assert [job.state for job in manager.jobs()] == ["done"] * 4
    assert sum(thread.name == "vae-guard-download" for thread in threading.enumerate()) >= 2


@pytest.mark.slow
def test_progress_can_be_watched(hub: HubServer, manager: DownloadManager) -> None:
    hub.fault("CDN GET", rate=600_000)
    job_id = manager.start("acme/a")
    seen: list[Job] = []

    def watch() -> bool:
        job = manager.job(job_id)
        assert job is not None
        seen.append(job)
        return not job.active

    until(watch)
    moving = [job for job in seen if "left" in job.message]
    assert moving
    assert all(0 < (job.fraction or 0) <= 1 for job in moving)


def test_the_same_reference_twice_is_one_job(hub: HubServer, manager: DownloadManager) -> None:
    hub.fault("CDN GET", rate=1e6)
    assert manager.start("acme/a") == manager.start(" acme/a ")
    assert len(manager.jobs()) == 1


@pytest.mark.slow
def test_cancel_a_running_download_and_start_it_again(hub: HubServer, manager: DownloadManager) -> None:
    hub.fault("CDN GET", rate=150_000)
    job_id = manager.start("acme/a")
    until(lambda: manager.jobs()[0].done > 50_000)
    assert manager.cancel(job_id)
    job = finished(manager, job_id)
    assert (job.state, job.error) == ("cancelled", None)
    assert "kept" in job.message
    assert not manager.cancel(job_id)

    again = finished(manager, manager.start("acme/a"))
    assert again.result is not None
    assert again.result.resumed_from > 50_000


@pytest.mark.slow
def test_cancel_a_waiting_download(hub: HubServer, models: Path) -> None:
    over: list[Job] = []
    manager = DownloadManager(models / "VAE", workers=1, endpoint=hub.endpoint, on_finished=over.append)
    hub.add("acme/a", {"a.safetensors": vae_bytes()})
    hub.fault("CDN GET", rate=1e6)
    first, second = manager.start("acme/a"), manager.start("acme/b")
    assert manager.cancel(second)
    job = manager.job(second)
    assert job is not None
    assert job.state == "cancelled"
    assert finished(manager, first).state == "done"
    time.sleep(0.1)
    assert [job.id for job in over] == [second, first]
    assert not any("acme/b" in request.path for request in hub.requests)


def test_questions_come_as_typed_errors(hub: HubServer, manager: DownloadManager, models: Path) -> None:
    hub.add("acme/pickle", {"vae.ckpt": b"x"})
    hub.add("acme/two", {"vae-a.safetensors": b"a", "vae-b.safetensors": b"b"})
    hub.add("acme/gated", {"vae.safetensors": vae_bytes()}, gated=True)
    hub.add("acme/bad", {"vae.safetensors": b"not weights"})
    (models / "VAE" / "a.safetensors").write_bytes(b"mine")
    expected = {
        "acme/pickle": PickleRefused,
        "acme/two": AmbiguousReference,
        "acme/gated": GatedRepository,
        "acme/bad": VerificationError,
        "acme/a": TargetExists,
    }
    for reference, kind in expected.items():
        job = finished(manager, manager.start(reference))
        assert job.state == "failed"
        assert type(job.error) is kind
        assert job.message == str(job.error)
    renamed = finished(manager, manager.start("acme/a", on_conflict="rename"))
    assert renamed.result is not None
    assert renamed.result.path.name == "a-2.safetensors"
    allowed = finished(manager, manager.start("acme/pickle", allow_pickle=True))
    assert isinstance(allowed.error, VerificationError)


def test_on_finished_sees_the_job_and_cannot_break_it(hub: HubServer, models: Path) -> None:
    hub.add("acme/a", {"a.safetensors": vae_bytes()})
    seen: list[Job] = []

    def refresh(job: Job) -> None:
        seen.append(job)
        raise RuntimeError("the interface is gone")

    manager = DownloadManager(models / "VAE", endpoint=hub.endpoint, on_finished=refresh)
    assert finished(manager, manager.start("acme/a")).state == "done"
    assert finished(manager, manager.start("acme/none")).state == "failed"
    assert [job.state for job in seen] == ["done", "failed"]


def test_a_bug_ends_the_job_and_not_the_thread(manager: DownloadManager, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lib.hub import manager as module

    real = module.pull
    monkeypatch.setattr(module, "pull", lambda *args, **options: 1 / 0)
    job = finished(manager, manager.start("acme/a"))
    assert (job.state, job.error) == ("failed", None)
    assert "unexpected" in job.message
    monkeypatch.setattr(module, "pull", real)
    assert finished(manager, manager.start("acme/a")).state == "done"


def test_a_job_that_there_is_not(manager: DownloadManager) -> None:
    assert manager.job("download-1") is None
    assert manager.wait("download-1") is None
    assert not manager.cancel("download-1")


@pytest.mark.slow
def test_close_stops_everything(hub: HubServer, manager: DownloadManager) -> None:
    hub.fault("CDN GET", rate=100_000, times=9)
    before = set(threading.enumerate())
    for letter in "abcd":
        manager.start(f"acme/{letter}")
    mine = set(threading.enumerate()) - before
    until(lambda: any(job.done for job in manager.jobs()))
    manager.close()  # gives up on those that do not stop, which would still be running here
    assert {job.state for job in manager.jobs()} == {"cancelled"}
    until(lambda: not [t for t in threading.enumerate() if t.name == "vae-guard-download" and t in mine])
    hub.faults.clear()
    assert finished(manager, manager.start("acme/a")).state == "done"


@pytest.mark.slow
def test_leaving_in_the_middle_does_not_hang(hub: HubServer, manager: DownloadManager, models: Path) -> None:
    hub.fault("CDN GET", rate=100_000)
    code = (
        "import sys, time\n"
        "from vae_lib.hub import DownloadManager\n"
        "manager = DownloadManager(sys.argv[1])\n"
        "manager.start('acme/a')\n"
        "while not manager.jobs()[0].done:\n"
        "    time.sleep(0.02)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(models / "VAE")],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": hub.endpoint},
        timeout=240,
        check=True,
    )
    resumed = finished(manager, manager.start("acme/a")).result
    assert resumed is not None
    assert resumed.resumed_from > 0


def test_starts_cancels_and_looks_from_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job is listed once, and comes to an end."""
    outcomes = itertools.cycle([Cancelled("stopped"), DownloadError("no"), RuntimeError("a bug")])

    def pulled(*_: object, **__: object) -> None:
        raise next(outcomes)

    monkeypatch.setattr("vae_lib.hub.manager.pull", pulled)
    manager, over = DownloadManager(tmp_path, workers=3), threading.Event()

    def start(thread: int) -> list[str]:
        chosen, ids = random.Random(thread), []
        for number in range(30):
            ids.append(manager.start(f"acme/{thread}-{number}"))
            if chosen.random() < 0.5:
                manager.cancel(chosen.choice(ids))
        return ids

    def look() -> None:
        seen = 0
        while not over.is_set():
            jobs = manager.jobs()
            assert len({job.id for job in jobs}) == len(jobs) >= seen
            seen = len(jobs)

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(look) for _ in range(2)]
        try:
            started = [job_id for ids in pool.map(start, range(4)) for job_id in ids]
        finally:
            over.set()
        for reader in readers:
            reader.result(60)
    for job_id in started:
        assert not finished(manager, job_id).active
    assert sorted(job.id for job in manager.jobs()) == sorted(started)
    assert {job.state for job in manager.jobs()} <= {"failed", "cancelled"}
    manager.close()
