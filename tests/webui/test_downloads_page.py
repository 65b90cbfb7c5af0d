"""Downloads in the host's page: the button of the settings, and a file that is used at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.hub_server import HubServer
from tests.webui.host import Host

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, expect

from tests.webui.test_browser import SECONDS, browser, open_page, open_tab, shoot
from tests.webui.test_downloads import TAESD_FILES, host, hub, without_taesd

__all__ = ["browser", "host", "hub", "without_taesd"]  # fixtures


def test_the_settings_get_taesd_for_the_loaded_checkpoint(browser: Browser, host: Host, without_taesd: Path) -> None:
    page = open_page(browser, host)
    try:
        open_tab(page, "Settings")
        open_tab(page, "VAE Guard", "#settings")
        expect(page.locator("#setting_vae_guard_taesd").last).to_contain_text("never downloaded in the middle")
        state = page.locator("#setting_vae_guard_taesd_state").last
        expect(state).to_contain_text("TAESD for SD1, the loaded checkpoint's family, is not here yet.")
        button = page.locator("#setting_vae_guard_taesd_get")
        button.click()
        expect(state).to_contain_text("family, is here.", timeout=SECONDS)
        assert {path.name for path in without_taesd.glob("*.pth")} == TAESD_FILES
        shoot(page, "settings-taesd-1280")
        page.locator("#settings_submit").click()  # a button among the settings is no setting
        expect(page.locator("#settings_result").last).to_contain_text("settings changed")
        expect(page.locator("#settings_result").last).not_to_contain_text("vae_guard_taesd")
        assert "vae_guard_taesd" not in host.get("/probe/options")
    finally:
        page.close()
    page = open_page(browser, host)
    open_tab(page, "Settings")
    open_tab(page, "VAE Guard", "#settings")
    expect(page.locator("#setting_vae_guard_taesd_state").last).to_contain_text("family, is here.")
    expect(page.locator("#setting_vae_guard_taesd_get")).to_be_disabled()
    for name in TAESD_FILES:
        (without_taesd / name).unlink()
    open_tab(page, "txt2img")
    open_tab(page, "Settings")  # it is looked at again each time
    expect(page.locator("#setting_vae_guard_taesd_state").last).to_contain_text("is not here yet.")
    expect(page.locator("#setting_vae_guard_taesd_get")).to_be_enabled()
    page.close()


def test_the_settings_say_why_taesd_could_not_be_had(
    browser: Browser, host: Host, hub: HubServer, without_taesd: Path
) -> None:
    page = open_page(browser, host)
    files = hub.repos["acme/tiny"].files
    hub.repos["acme/tiny"].files = {}
    try:
        open_tab(page, "Settings")
        open_tab(page, "VAE Guard", "#settings")
        page.locator("#setting_vae_guard_taesd_get").click()
        state = page.locator("#setting_vae_guard_taesd_state").last
        expect(state).to_contain_text("acme/tiny", timeout=SECONDS)
        assert not any(without_taesd.glob("*.pth"))
    finally:
        hub.repos["acme/tiny"].files = files
        page.close()


def test_a_download_is_used_at_once(browser: Browser, host: Host) -> None:
    page = open_page(browser, host)
    try:
        open_tab(page, "VAE")
        open_tab(page, "Downloads", "#vg_tabs")
        page.locator("#vg_reference input, #vg_reference textarea").first.fill("acme/good")
        page.locator("#vg_download").click()
        job = page.locator("#vg_job_0")
        job.get_by_role("button", name="Use it now").click(timeout=SECONDS)
        expect(page.locator("#vg_download_said").last).to_contain_text(
            "good.safetensors is now in use", timeout=SECONDS
        )
        assert host.vae_in_use() == str(host.data / "models/VAE/good.safetensors")
    finally:
        host.use_vae("None")
        page.close()
