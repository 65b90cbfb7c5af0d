"""Downloads inside the host: over our routes, from the settings, and when a checkpoint is loaded.

A hub of our own stands in for Hugging Face, and the catalog is one whose hashes are those of its files.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from tests.guard.fake_host import FakeHost
from tests.hub.conftest import taesd_bytes, vae_bytes
from tests.hub.hub_server import HubServer, running_hub
from tests.webui import host as hosts
from tests.webui import weights
from tests.webui.host import ApiError, Host
from vae_lib.guard import Guard
from vae_lib.webui.downloads import Downloads

TAESD_FILES = {"taesd_encoder.pth", "taesd_decoder.pth"}


@functools.cache
def good_bytes() -> bytes:
    """A VAE that the host can load."""
    return bytes(save({name: value.contiguous() for name, value in weights.vae(5).items()}))


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        server.add("acme/good", {"good.safetensors": good_bytes()})
        server.add("acme/slow", {"slow.safetensors": vae_bytes(seed=1)})
        server.add("acme/two", {"a-vae.safetensors": vae_bytes(seed=2), "b-vae.safetensors": vae_bytes(seed=3)})
        server.add("acme/bad", {"bad.safetensors": vae_bytes(seed=4)}, announced={"bad.safetensors": "0" * 64})
        server.add("acme/tiny", {"taesd.safetensors": taesd_bytes()})
        yield server


def start(folder: Path, hub: HubServer, **settings: Any) -> Host:
    hosts.prepare_data(folder)
    shutil.rmtree(folder / "models/VAE-taesd")
    catalog = folder / "extensions" / hosts.EXTENSION / "vae_lib/catalog/files.toml"
    sha256 = hashlib.sha256(taesd_bytes()).hexdigest()
    catalog.write_text(
        '[[entry]]\nid = "taesd"\ntitle = "TAESD"\nrepository = "acme/tiny"\nfile = "taesd.safetensors"\n'
        f'family = "SD1"\nkind = "TAESD"\nlicence = "MIT"\npurpose = "For tests."\nsha256 = "{sha256}"\n'
    )
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    return hosts.start(folder, variables=environment, **settings)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[Host]:
    running = start(tmp_path_factory.mktemp("downloads"), hub)
    if hosts.IS_FORGE:
        running.generate(steps=1)  # before which it loads nothing
    yield running
    running.stop()


@pytest.fixture
def without_taesd(host: Host) -> Iterator[Path]:
    folder = host.data / "models/VAE-taesd"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def post(host: Host, **arguments: Any) -> Any:
    return host.post("/vae-guard/downloads", arguments)


def until(true: Callable[[], Any], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.05)
    return found


def over(host: Host, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it has ended."""

    def ended() -> Any:
        now = host.get(f"/vae-guard/downloads/{job['id']}")
        return now if now["state"] not in ("queued", "running") else None

    return dict(until(ended))


def test_a_finished_download_is_in_the_dropdown_and_can_be_used(host: Host) -> None:
    assert "good.safetensors" not in host.vaes()
    started = post(host, reference="acme/good")
    assert started["state"] in ("queued", "running", "done")
    done = over(host, started)
    size = len(good_bytes())
    assert (done["state"], done["done"], done["total"]) == ("done", size, size)
    assert done["path"] == str(host.data / "models/VAE/good.safetensors")
    assert done in host.get("/vae-guard/downloads")
    until(lambda: "good.safetensors" in host.vaes())
    assert Path(done["path"]).read_bytes() == good_bytes()


def test_the_same_again_fetches_nothing(host: Host, hub: HubServer) -> None:
    over(host, post(host, reference="acme/good"))
    before = len(hub.gets())
    assert over(host, post(host, reference="acme/good"))["state"] == "done"
    assert len(hub.gets()) == before


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"reference": "  "},
        {"reference": "x/y", "allow_pickle": "maybe"},
        {"reference": "x/y", "path": "/etc"},
    ],
)
def test_bad_arguments_are_refused(host: Host, query: dict[str, str]) -> None:
    before = host.get("/vae-guard/downloads")
    with pytest.raises(ApiError) as refused:
        post(host, **query)
    assert refused.value.status == 422
    assert host.get("/vae-guard/downloads") == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
@pytest.mark.parametrize("route", ["downloads", "latents/0/decode"])
def test_a_page_of_another_site_can_start_nothing(host: Host, route: str, kind: str | None) -> None:
    """What a browser sends without asking the WebUI first."""
    body = b'{"reference": "acme/good", "allow_pickle": true}'
    address = f"{host.url}/vae-guard/{route}?reference=acme/good"
    request = urllib.request.Request(address, body, {"Content-Type": kind} if kind else {}, method="POST")
    before = host.get("/vae-guard/downloads")
    with pytest.raises(urllib.error.HTTPError) as refused:
        host.opener.open(request, timeout=60)
    assert refused.value.code == 415
    assert "Ask in JSON" in refused.value.read().decode()
    assert host.get("/vae-guard/downloads") == before


def test_an_unknown_download_is_not_found(host: Host) -> None:
    for ask in (host.get, host.delete):
        with pytest.raises(ApiError) as missing:
            ask("/vae-guard/downloads/download-999")
        assert missing.value.status == 404
        assert "download-999" in str(missing.value)


@pytest.mark.parametrize(
    "reference",
    [
        "not a reference",
        "own\ner/na\x00me",
        "a/b/c\nd.safetensors",
        "https://huggingface.co/a/b/blob/main/%0Ac",
        "x" * 100_000,
        "a//b",
    ],
)
def test_what_can_be_no_file_on_the_hub_is_refused_at_once(host: Host, reference: str) -> None:
    before, lines = host.get("/vae-guard/downloads"), host.log().count("\n")
    with pytest.raises(ApiError) as refused:
        post(host, reference=reference)
    assert refused.value.status == 422
    assert len(str(refused.value)) < 1000
    assert host.get("/vae-guard/downloads") == before
    assert "\x00" not in host.log()
    assert host.log().count("\n") == lines


def test_several_files_are_offered(host: Host) -> None:
    failed = over(host, post(host, reference="acme/two"))
    assert failed["state"] == "failed"
    assert failed["candidates"] == ["acme/two/a-vae.safetensors", "acme/two/b-vae.safetensors"]
    assert over(host, post(host, reference=failed["candidates"][1]))["state"] == "done"


def test_a_file_that_fails_the_check_never_appears(host: Host) -> None:
    failed = over(host, post(host, reference="acme/bad"))
    assert failed["state"] == "failed"
    assert "SHA-256" in failed["message"]
    host.post("/sdapi/v1/refresh-vae")
    assert not any(name.startswith("bad") for name in host.vaes())
    (reason,) = (host.data / "models/VAE/.vae-guard/quarantine").glob("bad*.reason.txt")
    assert "SHA-256" in reason.read_text()


def test_another_file_of_the_name_is_kept(host: Host) -> None:
    taken = host.data / "models/VAE/a-vae.safetensors"
    taken.write_bytes(b"mine")
    failed = over(host, post(host, reference="acme/two/a-vae.safetensors"))
    assert failed["state"] == "failed"
    assert "Nothing was overwritten" in failed["message"]
    both = over(host, post(host, reference="acme/two/a-vae.safetensors", rename=True))
    assert both["state"] == "done"
    assert both["path"] == str(taken.with_name("a-vae-2.safetensors"))
    assert taken.read_bytes() == b"mine"


def test_cancel_keeps_a_part_that_is_continued_and_a_generation_does_not_wait(host: Host, hub: HubServer) -> None:
    size = len(vae_bytes(seed=1))
    hub.fault("CDN GET .*slow", rate=size / 60)
    started = post(host, reference="acme/slow")
    until(lambda: host.get(f"/vae-guard/downloads/{started['id']}")["done"])
    assert len(host.generate(steps=1).images) == 1
    assert host.get(f"/vae-guard/downloads/{started['id']}")["state"] == "running"
    host.delete(f"/vae-guard/downloads/{started['id']}")
    assert over(host, started)["state"] == "cancelled"
    host.post("/sdapi/v1/refresh-vae")
    assert "slow.safetensors" not in host.vaes()
    (part,) = (host.data / "models/VAE/.vae-guard/downloads").glob("*/content.part")
    kept = part.stat().st_size
    assert 0 < kept < size
    assert over(host, post(host, reference="acme/slow"))["state"] == "done"
    assert hub.gets()[-1].headers["range"] == f"bytes={kept}-"
    assert (host.data / "models/VAE/slow.safetensors").read_bytes() == vae_bytes(seed=1)


def test_taesd_lands_where_the_host_looks(host: Host, without_taesd: Path) -> None:
    assert over(host, post(host, reference="taesd"))["state"] == "done"
    assert {path.name for path in without_taesd.glob("*.pth")} == TAESD_FILES
    host.post("/sdapi/v1/options", {"sd_vae_decode_method": "TAESD"})  # the host's own option, by these files
    try:
        assert len(host.generate(steps=1).images) == 1
    finally:
        host.post("/sdapi/v1/options", {"sd_vae_decode_method": "Full"})


@pytest.mark.parametrize("wanted", [True, False])
def test_taesd_when_a_checkpoint_is_loaded(tmp_path: Path, hub: HubServer, wanted: bool) -> None:
    before = len(hub.gets())
    running = start(tmp_path, hub, vae_guard_get_taesd=wanted)
    try:
        folder = tmp_path / "models/VAE-taesd"
        if hosts.IS_FORGE:
            running.generate(steps=1)  # before which it loads nothing
        if wanted:
            until(lambda: {path.name for path in folder.glob("*.pth")} == TAESD_FILES)
        running.generate(steps=1, guard=[True, "TAESD", 0])
        assert [job["reference"] for job in running.get("/vae-guard/downloads")] == ["taesd"] * wanted
        assert (len(hub.gets()) > before) is wanted
        assert any(folder.glob("*.pth")) is wanted
    finally:
        running.stop()


def test_before_a_checkpoint_is_loaded_the_settings_say_what_to_do(tmp_path: Path) -> None:
    fake: Any = FakeHost(tmp_path)
    fake.loaded = lambda: None  # as in Forge before the first generation
    sentence = "No checkpoint is loaded yet; generate a picture first."
    assert Downloads(fake, Guard(fake).notices).taesd_present() == sentence
