"""The password of a mirror, which may stand in HF_ENDPOINT: in no message, line of the console, answer or file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.exceptions import HTTPException

from tests.guard.fake_host import FakeHost
from tests.hub.conftest import vae_bytes
from tests.hub.hub_server import HubServer
from vae_lib.cli import main
from vae_lib.errors import DownloadError, VAEGuardError, without_user
from vae_lib.guard import Guard
from vae_lib.hub import DownloadManager, GatedRepository, Job, client
from vae_lib.ui.downloads_section import job_html
from vae_lib.webui.downloads import Downloads

PASSWORD = "s3cr:et"
HIDDEN = "s3cr"


@pytest.fixture
def mirror(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that wants a user and a password, as they stand in its address."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    hub.token = f"me:{PASSWORD}"
    hub.endpoint = hub.endpoint.replace("://", f"://me:{PASSWORD}@")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    form = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", form)
    hub.add("acme/good", {"good.safetensors": vae_bytes(seed=1)})
    hub.add("acme/bad", {"bad.safetensors": vae_bytes(seed=2)}, announced={"bad.safetensors": "0" * 64})
    hub.add("acme/empty", {"README.md": b""})
    for name, status in (("busy", 500), ("asked", 429), ("shut", 403), ("odd", 418)):
        hub.add(f"acme/{name}", {"a.safetensors": vae_bytes(seed=3)})
        hub.fault(f"acme/{name}", times=99, status=status)
    hub.add("acme/cut", {"cut.safetensors": vae_bytes(seed=4)})
    hub.fault("CDN GET.*cut", times=99, cut_after=1000)
    yield hub
    hub.faults.clear()


REFERENCES = [
    "acme/good", "acme/bad", "acme/empty", "acme/busy", "acme/asked", "acme/shut", "acme/odd", "acme/cut", "acme/none",
    "acme/good@none", "acme/good/none.safetensors", "{hub}/acme/good/resolve/main/good.safetensors",
]  # fmt: skip
REFUSED = [
    "{hub}/acme",
    "{hub}/datasets/a/b",
    "{hub}/acme/good/none",
    f"https://me:{PASSWORD}@elsewhere.example/a/b",
]


@pytest.mark.slow
def test_whatever_becomes_of_a_download(
    mirror: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    host: Any = FakeHost(tmp_path)
    host.refresh_vaes = lambda: None
    downloads = Downloads(host, Guard(host).notices)
    said: list[object] = []
    for reference in REFERENCES:
        job_id = downloads.start({"reference": reference.format(hub=mirror.endpoint)})["id"]
        job = downloads.manager().wait(job_id, 120)
        assert job is not None
        said += [job_html(job), repr(job.error)]
    for reference in REFUSED:
        with pytest.raises(HTTPException) as raised:
            downloads.start({"reference": reference.format(hub=mirror.endpoint)})
        said.append(raised.value.detail)
    jobs = downloads.jobs()
    assert {job["state"] for job in jobs} == {"done", "failed"}
    downloads.close()
    reasons = [path.read_text() for path in tmp_path.rglob("*.reason.txt")]
    assert len(reasons) == 1
    assert "/acme/bad/resolve/" in reasons[0]
    for told in (*said, *reasons, json.dumps(jobs), capsys.readouterr(), caplog.text, *host.told):
        assert HIDDEN not in str(told)


def test_the_page_of_a_licence(mirror: HubServer) -> None:
    error = client.Hub().gated("acme/good")
    assert isinstance(error, GatedRepository)
    assert HIDDEN not in f"{error} {error.url}"
    assert error.url == f"{without_user(mirror.endpoint)}/acme/good"


def test_an_error_that_nobody_expected(
    mirror: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"no idea what {mirror.endpoint} means")

    def broken_too(job: Job) -> None:
        broken()

    monkeypatch.setattr("vae_lib.hub.manager.pull", broken)
    manager = DownloadManager(tmp_path, on_finished=broken_too)
    manager.wait(manager.start("acme/good"), 60)
    manager.close()
    assert caplog.text.count("no idea what http://127.0.0.1") >= 2
    assert HIDDEN not in caplog.text


@pytest.mark.slow
def test_the_command_line(mirror: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reference in REFERENCES + REFUSED:
        main(["pull", reference.format(hub=mirror.endpoint), "--folder", str(tmp_path)])
    told = capsys.readouterr()
    assert "127.0.0.1" in told.err
    assert HIDDEN not in f"{told}"


@pytest.mark.parametrize("given", [f"http://me:{HIDDEN}/et@mirror", f"me:{HIDDEN}#@mirror", f"ftp://me:{HIDDEN}@x"])
def test_an_address_that_cannot_be_used(given: str) -> None:
    with pytest.raises(DownloadError, match="which is not the address of a hub") as raised:
        client.endpoint_in_use(given)
    assert HIDDEN not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pass@mirror/a/b@main", "http://mirror/a/b@main"),
        ("HTTPS://me@mirror:8080", "HTTPS://mirror:8080"),
        ("no http://a:b@c@mirror, nor https://x:y@z.", "no http://mirror, nor https://z."),
        ("https://huggingface.co/acme/vae@main", "https://huggingface.co/acme/vae@main"),
        ("me@mirror.example", "me@mirror.example"),
    ],
)
def test_addresses_as_they_are_shown(text: str, shown: str) -> None:
    assert without_user(text) == shown
    assert str(VAEGuardError(text)) == shown
