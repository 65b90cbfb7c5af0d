"""Pictures whose decode failed, or whose process died in it, can be had all the same."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.webui import host as hosts
from tests.webui.test_browser import SECONDS, browser, open_page, open_tab  # noqa: F401
from tests.webui.test_pictures import assert_close, assert_same
from vae_lib.checkpoints import load_latents
from vae_lib.cli import main

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, expect

FOLDER = "vae-guard-latents"
LARGE = {"width": 384, "height": 384, "seed": 5}


def files(host: hosts.Host) -> list[Path]:
    return [path for path in (host.data / FOLDER).glob("*.safetensors") if not path.name.startswith(".")]


def test_several_unfinished_pictures_outlast_the_kept_ones(host: hosts.Host) -> None:
    host.generate()  # the model is loaded
    host.post("/probe/break")
    try:
        for seed in range(6):  # more than are kept in RAM
            with pytest.raises(hosts.ApiError):
                host.generate(seed=seed)
        with pytest.raises(hosts.ApiError, match="even in fp32") as raised:
            host.post("/vae-guard/latents/0/decode")
        assert raised.value.status == 422
    finally:
        host.post("/probe/mend")
    host.generate()
    listed = [item for item in host.get("/vae-guard/latents") if item["file"]]
    assert len(listed) == len(files(host)) == 6
    for _ in listed:
        index = next(item["index"] for item in host.get("/vae-guard/latents") if item["file"])
        host.post(f"/vae-guard/latents/{index}/decode")
    assert files(host) == []
    assert not any(item["file"] for item in host.get("/vae-guard/latents"))


def test_latents_removed_over_the_api(host: hosts.Host) -> None:
    host.generate()
    host.post("/probe/break")
    try:
        with pytest.raises(hosts.ApiError):
            host.generate()
    finally:
        host.post("/probe/mend")
    (path,) = files(host)
    before = len(host.get("/vae-guard/latents"))
    assert host.delete("/vae-guard/latents/0") == {"kept": before - 1}
    assert len(host.get("/vae-guard/latents")) == before - 1
    assert not path.exists()
    with pytest.raises(hosts.ApiError, match="no kept latents number 99"):
        host.delete("/vae-guard/latents/99")


@pytest.fixture
def failed(host: hosts.Host) -> Iterator[hosts.Picture]:
    """A generation that nothing could decode, after which the VAE works again; and the picture it would have been."""
    whole = host.generate(seed=77)
    host.post("/probe/break")
    try:
        with pytest.raises(hosts.ApiError) as raised:
            host.generate(seed=77)
        assert "its latents are in" in str(raised.value)
        assert "VAE > Unfinished" in str(raised.value)
    finally:
        host.post("/probe/mend")
    yield whole
    for path in files(host):
        path.unlink()


def test_nothing_is_left_on_disk_of_a_finished_picture(host: hosts.Host) -> None:
    host.generate(batch_size=2)
    assert (host.data / FOLDER).is_dir()
    assert files(host) == []


def test_latents_of_a_failed_picture_are_kept_told_and_decoded(
    host: hosts.Host, failed: hosts.Picture
) -> None:
    (path,) = files(host)
    assert f"its latents are in {path}" in host.log()
    latents, metadata = load_latents(path)
    assert latents.shape == (1, 4, 16, 16)
    assert "Seed: 77" in metadata["parameters"]
    listed = host.get("/vae-guard/latents")[0]
    assert (listed["file"], listed["decoded_by"]) == (str(path), None)
    again = host.decode_again()
    assert_same(again, failed)
    assert "Seed: 77" in again.infotext
    assert files(host) == []


def test_the_command_line_decodes_what_was_kept(
    host: hosts.Host, failed: hosts.Picture, tmp_path: Path
) -> None:
    from PIL import Image

    from tests.webui import weights

    (path,) = files(host)
    vae, out = weights.save_vae(tmp_path / "vae.safetensors", weights.vae(1)), tmp_path / "out.png"
    assert main(["decode", str(path), "--vae", str(vae), "-o", str(out)]) == 0
    picture = Image.open(out)
    assert_close(np.asarray(picture.convert("RGB")), failed.images[0])
    assert "Seed: 77" in picture.info["parameters"]


def test_decode_now_in_the_tab(host: hosts.Host, failed: hosts.Picture, browser: Browser) -> None:  # noqa: F811
    page = open_page(browser, host)
    open_tab(page, "VAE")
    open_tab(page, "Unfinished", "#vg_tabs")
    page.locator("#vg_finish").click()
    expect(page.locator("#vg_unfinished_said").last).to_contain_text("Decoded, and saved", timeout=SECONDS)
    expect(page.locator("#vg_finished img").first).to_be_visible()
    expect(page.locator("#vg_finish")).to_be_hidden()
    assert files(host) == []
    page.close()


def test_a_host_killed_in_the_middle_of_a_decode(tmp_path: Path) -> None:
    hosts.prepare_data(tmp_path)
    running = hosts.start(tmp_path)
    try:
        running.post(
            "/probe/measuring?on=false"
        )  # which takes minutes for so large a picture on a busy machine
        whole = running.generate(**LARGE)

        def generate() -> None:
            with contextlib.suppress(OSError):
                running.generate(**LARGE)

        client = threading.Thread(target=generate)
        client.start()
        end = time.monotonic() + 240
        while not files(running) and time.monotonic() < end:
            time.sleep(0.002)
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        client.join()
        assert len(files(running)) == 1, "killed too late"
    finally:
        running.stop()
    again = hosts.start(tmp_path)
    try:
        assert "1 picture was not finished" in again.log()
        assert [item["decoded_by"] for item in again.get("/vae-guard/latents")] == [None]
        again.post("/probe/measuring?on=false")
        finished = again.decode_again()
        assert_close(finished.images[0], whole.images[0])
        assert "Seed: 5" in finished.infotext
        assert files(again) == []
    finally:
        again.stop()
