"""Pictures whose decode failed, or whose process died in it, can be had all the same."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.accessibility import violations
from tests.webui import host as hosts
from tests.webui.test_browser import SECONDS, browser, generate, open_page, open_tab, shoot  # noqa: F401
from tests.webui.test_pictures import assert_close, assert_same
from vae_lib.checkpoints import load_latents
from vae_lib.cli import main

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect

FOLDER = "vae-guard-latents"
LARGE = {"width": 384, "height": 384, "seed": 5}


def files(host: hosts.Host) -> list[Path]:
    return [path for path in (host.data / FOLDER).glob("*.safetensors") if not path.name.startswith(".")]


@pytest.fixture(autouse=True)
def _nothing_left_of_other_tests(request: pytest.FixtureRequest) -> None:
    if "host" in request.fixturenames:
        clear(request.getfixturevalue("host"))


def clear(host: hosts.Host) -> None:
    """Remove all latents on disk."""
    while any(item["file"] for item in host.get("/vae-guard/latents")):
        wanted = next(item["id"] for item in host.get("/vae-guard/latents") if item["file"])
        host.delete(f"/vae-guard/latents/{wanted}")


@pytest.fixture
def failed(host: hosts.Host) -> Iterator[hosts.Picture]:
    """A generation that nothing could decode, after which the VAE works again; and the picture it would have been."""
    whole = host.generate(seed=77)
    host.post("/probe/break")
    try:
        if hosts.IS_NEO:  # which goes on with a black picture
            assert not host.generate(seed=77).images[0].any()
        else:
            with pytest.raises(hosts.ApiError) as raised:
                host.generate(seed=77)
            assert str(files(host)[0]) in str(raised.value)
    finally:
        host.post("/probe/mend")
    yield whole
    for path in files(host):
        path.unlink()


def test_nothing_is_left_on_disk_of_a_finished_picture(host: hosts.Host) -> None:
    host.generate(batch_size=2)
    assert (host.data / FOLDER).is_dir()
    assert files(host) == []


def test_latents_of_a_failed_picture_are_kept_told_and_decoded(host: hosts.Host, failed: hosts.Picture) -> None:
    (path,) = files(host)
    assert str(path) in host.log()
    latents, metadata = load_latents(path)
    assert latents.shape == (1, 4, 16, 16)
    assert "Seed: 77" in metadata["parameters"]
    listed = host.get("/vae-guard/latents")[0]
    assert (listed["file"], listed["decoded_by"]) == (str(path), None)
    again = host.decode_again()
    assert_same(again, failed)
    assert "Seed: 77" in again.infotext
    assert files(host) == []


def test_the_command_line_decodes_what_was_kept(host: hosts.Host, failed: hosts.Picture, tmp_path: Path) -> None:
    from PIL import Image

    from tests.webui import weights

    (path,) = files(host)
    vae, out = weights.save_vae(tmp_path / "vae.safetensors", weights.vae(1)), tmp_path / "out.png"
    assert main(["decode", str(path), "--vae", str(vae), "-o", str(out)]) == 0
    picture = Image.open(out)
    assert_close(np.asarray(picture.convert("RGB")), failed.images[0])
    assert "Seed: 77" in picture.info["parameters"]


@pytest.fixture
def page(host: hosts.Host, browser: Browser) -> Iterator[Page]:  # noqa: F811
    opened = open_page(browser, host)
    yield opened
    opened.close()


def unfinished_tab(page: Page) -> Locator:
    """The table in VAE > Unfinished."""
    open_tab(page, "VAE")
    open_tab(page, "Unfinished", "#vg_tabs")
    return page.locator("#vg_unfinished_table").last


def said(page: Page) -> Locator:
    return page.locator("#vg_unfinished_said").last


def test_the_page_says_where_they_are(host: hosts.Host, page: Page) -> None:
    """In the place of the infotext, where it stays; reForge and Forge Classic by themselves show a TypeError there."""
    generate(page)
    header = page.locator("#txt2img_vae_guard .label-wrap").first
    expect(header).to_contain_text("last decode")
    host.post("/probe/break")
    try:
        page.locator("#txt2img_generate").click()
        told = page.locator("#html_log_txt2img").last
        expect(told).to_contain_text(FOLDER, timeout=SECONDS)
        expect(told).to_contain_text("fp32")  # the cause, too
        expect(page.locator(".toast-body").first).to_contain_text(FOLDER)
        expect(header).not_to_contain_text("last decode")
    finally:
        host.post("/probe/mend")
    assert "TypeError" not in told.inner_text()
    assert len(files(host)) == 1


def test_decode_now_in_the_tab(host: hosts.Host, failed: hosts.Picture, page: Page) -> None:
    rows = unfinished_tab(page).locator("tbody tr")
    expect(rows).to_have_count(1)
    for text in ("not decoded", "128x128", "small", "77", "a cup"):
        expect(rows.first).to_contain_text(text)
    expect(rows.first.locator("img")).to_be_visible()
    expect(page.locator("#vg_finish_all")).to_be_hidden()
    shoot(page, "unfinished")
    assert violations(page, "#vg_tabs") == []
    page.locator("#vg_finish").click()
    expect(page.locator("#vg_finished img").first).to_be_visible(timeout=SECONDS)
    expect(page.locator("#vg_finish")).to_be_hidden()
    assert files(host) == []


def test_the_list_is_up_to_date_when_the_tab_is_shown(host: hosts.Host, page: Page) -> None:
    table = unfinished_tab(page)
    expect(table.locator("tbody tr")).to_have_count(0)
    open_tab(page, "txt2img")
    with approximated(host, seeds=(80, 81)):
        open_tab(page, "VAE")
        expect(table.locator("tbody tr")).to_have_count(2)
        expect(table.locator("tbody tr").first).to_contain_text("81")
        expect(table.locator("tbody tr").first).to_contain_text("TAESD, as chosen")
        expect(table.locator("tbody tr").first.locator("img")).to_be_visible()


def test_several_are_removed_and_decoded_at_once(host: hosts.Host, page: Page) -> None:
    with approximated(host, seeds=range(82, 88)):
        table = unfinished_tab(page)
        rows, remove = table.locator("tbody tr"), page.locator("#vg_unfinished_remove")
        expect(rows).to_have_count(6)
        for button in (remove, page.locator("#vg_finish")):
            expect(button).to_be_disabled()  # nothing is chosen yet

        def choose(*seeds: str) -> None:
            for seed in seeds:
                rows.filter(has_text=seed).locator("button").first.click()
                expect(rows.filter(has_text=seed)).to_have_class("vg-chosen")
            expect(table.locator("tr.vg-chosen")).to_have_count(len(set(seeds)))

        choose("83", "84", "85")
        rows.filter(has_text="85").locator("button").first.click()  # not, after all
        expect(table.locator("tr.vg-chosen")).to_have_count(2)
        remove.click()
        expect(said(page)).to_contain_text("The 2 that are chosen")  # it asks
        assert len(files(host)) == 6
        remove.click()
        expect(rows).to_have_count(4)
        choose("82", "87")
        page.locator("#vg_finish").click()
        expect(page.locator("#vg_finished img")).to_have_count(2, timeout=SECONDS)
        expect(rows).to_have_count(2)
        assert all(rows.filter(has_text=seed).count() == 1 for seed in ("85", "86"))
        page.locator("#vg_finish_all").click()
        expect(rows).to_have_count(0, timeout=SECONDS)
        assert files(host) == []


def test_a_decode_can_be_stopped(host: hosts.Host, page: Page) -> None:
    host.post("/probe/slow?seconds=0.3")
    try:
        with approximated(host, seeds=(85,), width=256, height=256):
            unfinished_tab(page)
            page.locator("#vg_finish").click()
            expect(said(page)).to_contain_text("bands")
            page.locator("#vg_finish_stop").click()
            expect(page.locator("#vg_finish")).to_be_visible(timeout=SECONDS)
            assert len(files(host)) == 1
    finally:
        host.post("/probe/slow?seconds=0")


@contextlib.contextmanager
def approximated(host: hosts.Host, seeds: Sequence[int], **generation: Any) -> Iterator[None]:
    """Pictures by TAESD, and their latents on disk."""
    for seed in seeds:
        host.generate(seed=seed, guard=[False, "TAESD", 0], **generation)
    try:
        assert len(files(host)) == len(seeds)
        yield
    finally:
        clear(host)


@contextlib.contextmanager
def killed_in_a_decode(data: Path, **generation: Any) -> Iterator[tuple[hosts.Host, hosts.Picture]]:
    """A host that was killed and is up again, and the picture that it was busy with."""
    hosts.prepare_data(data)
    running = hosts.start(data)
    try:
        running.post("/probe/measuring?on=false")  # which takes minutes for so large a picture on a busy machine
        whole = running.generate(**generation)

        def generate() -> None:
            with contextlib.suppress(OSError):
                running.generate(**generation)

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
    again = hosts.start(data)
    try:
        again.post("/probe/measuring?on=false")
        yield again, whole
    finally:
        again.stop()


def test_a_host_killed_in_the_middle_of_a_decode(tmp_path: Path) -> None:
    with killed_in_a_decode(tmp_path, **LARGE) as (again, whole):
        assert str(again.data / FOLDER) in again.log()
        assert [item["decoded_by"] for item in again.get("/vae-guard/latents")] == [None]
        finished = again.decode_again()
        assert_close(finished.images[0], whole.images[0])
        assert "Seed: 5" in finished.infotext
        assert files(again) == []
