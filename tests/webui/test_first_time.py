"""From "Install from URL" to a picture that fell back and was decoded again, as somebody does it for the first time.

With SCREENSHOTS in the environment, a picture of each step is left in that folder.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gradio_page import open_tab
from tests.webui import host as hosts
from tests.webui.test_browser import (
    SECONDS,
    browser,
    choose,
    generate,
    infotext,
    number,
    open_page,
    open_panel,
    shoot,
)

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

__all__ = ["browser"]  # a fixture
TALL = (1280, 1400)  # the panel and the lines below the picture are in each picture of a step


def install_from_url(page: Page) -> None:
    open_tab(page, "Extensions")
    open_tab(page, "Install from URL", "#tabs_extensions")
    page.get_by_label("URL for extension's git repository").fill(hosts.ROOT.as_uri())
    page.get_by_role("button", name="Install", exact=True).click()
    expect(page.locator("#extension_install_result").last).to_contain_text("Installed into", timeout=SECONDS)
    shoot(page, "first-2-install-from-url")


@pytest.mark.skipif(not (hosts.ROOT / ".git").exists(), reason="there is no repository to install from")
def test_the_first_time(tmp_path: Path, browser: Browser) -> None:
    hosts.prepare_data(tmp_path)
    shutil.rmtree(tmp_path / "extensions" / hosts.EXTENSION)
    host = hosts.start(tmp_path)
    try:
        page = open_page(browser, host, TALL)
        assert page.locator("#txt2img_vae_guard").count() == 0
        shoot(page, "first-1-before")
        if hosts.IS_REAL:
            install_from_url(page)
        else:  # its page has no tab Extensions: what that does
            folder = tmp_path / "extensions" / "sd-webui-vae-guard"
            subprocess.run(["git", "clone", "--quiet", "--depth=1", hosts.ROOT.as_uri(), folder], check=True)
        page.close()
        host.reload()

        page = open_page(browser, host, TALL)
        expect(page.locator("#txt2img_vae_guard")).to_be_visible()
        shoot(page, "first-3-installed")
        generate(page)
        expect(infotext(page)).to_contain_text("VAE Guard: full")
        header = page.locator("#txt2img_vae_guard .label-wrap").first
        expect(header).to_contain_text("last decode in full")
        shoot(page, "first-4-in-full")

        open_panel(page)
        number(page, "script_txt2img_vae_guard_threshold", 1000)
        generate(page)
        expect(page.locator("#html_log_txt2img").last).to_contain_text("in tiles")
        shoot(page, "first-5-fell-back")

        choose(page, "#script_txt2img_vae_guard_decode_by", "TAESD")
        generate(page)
        expect(infotext(page)).to_contain_text("VAE Guard: TAESD")
        again = page.get_by_role("button", name="Decode again in full")
        expect(again).to_be_visible()
        shoot(page, "first-6-taesd")
        again.click()
        expect(again).to_be_hidden(timeout=SECONDS)
        expect(infotext(page)).to_contain_text("decoded again")
        shoot(page, "first-7-again")
        page.close()
    finally:
        host.stop()


def test_what_an_uninstalled_extension_leaves_breaks_nothing(tmp_path: Path) -> None:
    """See docs/settings.md: a VAE by a name that only we can find, our settings, latents of an unfinished picture."""
    hosts.prepare_data(tmp_path)
    host = hosts.start(tmp_path)
    try:
        before = host.generate()
        assert "VAE Guard" in before.infotext
        host.post("/sdapi/v1/options", {"sd_vae": "a/twin.safetensors", "vae_guard_keep": 2})
        host.generate()
        latents = tmp_path / "vae-guard-latents"
        latents.mkdir(exist_ok=True)
        (latents / "left.safetensors").write_bytes(b"of a picture that was never finished")
        shutil.rmtree(tmp_path / "extensions" / hosts.EXTENSION)
        host.reload()
        after = host.generate()
        assert "VAE Guard" not in after.infotext
        assert after.images[0].shape == before.images[0].shape
    finally:
        host.stop()
