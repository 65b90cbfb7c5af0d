"""`pull` as a user runs it, in a process of its own, against a hub of the tests."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.conftest import vae_bytes
from tests.hub.hub_server import HubServer, running_hub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        server.add("acme/x", {"x.safetensors": vae_bytes()})
        yield server


def pull(hub: HubServer, folder: Path, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vae_lib", "pull", *arguments, "--folder", str(folder)],
        cwd=ROOT,
        env=os.environ
        | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"},
        # Who runs the tests in the background, as CI may, ignores Ctrl+C, and children inherit that.
        preexec_fn=None if os.name == "nt" else functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_the_file_arrives_and_is_named(hub: HubServer, tmp_path: Path) -> None:
    process = pull(hub, tmp_path, "acme/x")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert str(tmp_path / "x.safetensors") in out
    assert err == ""  # no bar where nobody looks
    assert (tmp_path / "x.safetensors").read_bytes() == vae_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_terminal_gets_a_bar(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("CDN GET", rate=400_000)
    terminal, end = os.openpty()
    process = pull(hub, tmp_path, "acme/x", stderr=end)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(terminal, 4096):
            shown += piece
    os.close(terminal)
    process.communicate(timeout=240)
    assert process.returncode == 0
    bar = max(shown.decode(errors="replace").split("\r"), key=lambda line: "downloading" in line)
    assert "B/s" in bar  # the speed; before it the size and the time left


def test_what_went_wrong_is_one_sentence(hub: HubServer, tmp_path: Path) -> None:
    process = pull(hub, tmp_path, "acme/missing")
    _, err = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert "acme/missing" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_keeps_what_arrived(hub: HubServer, tmp_path: Path) -> None:
    hub.fault("CDN GET", rate=200_000)
    process = pull(hub, tmp_path, "acme/x")
    end = time.monotonic() + 240
    while sum(part.stat().st_size for part in tmp_path.rglob("content.part")) < 100_000:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    again = pull(hub, tmp_path, "acme/x")
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert hub.gets()[-1].headers["range"].startswith("bytes=")
    assert (tmp_path / "x.safetensors").read_bytes() == vae_bytes()
