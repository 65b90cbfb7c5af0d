"""One truth about the VAE in use: the tab, the host's setting, its dropdown in the open page, and what is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webui import host as hosts
from tests.webui.test_browser import browser, open_page, shoot  # noqa: F401

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = pytest.mark.skipif(
    hosts.IS_FORGE, reason="Forge chooses its VAE among other modules, and has none for each checkpoint"
)


@pytest.fixture
def page(host: hosts.Host, browser: Browser) -> Iterator[Page]:  # noqa: F811
    host.post("/sdapi/v1/options", {"sd_vae": "None"})
    opened = open_page(browser, host)
    yield opened
    opened.close()
    host.post("/sdapi/v1/options", {"sd_vae": "None", "sd_vae_overrides_per_model_preferences": True})
    note(host).unlink(missing_ok=True)


@pytest.fixture
def broken(request: pytest.FixtureRequest, host: hosts.Host) -> Iterator[str]:
    """A file in the dropdown that is not what it was."""
    path = host.data / "models/VAE/other-diffusers.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000] if request.param == "cut short" else b"<!DOCTYPE html><html><body>Not found</body>")
    yield path.name
    path.write_bytes(whole)


@pytest.fixture
def dropdown_in(
    request: pytest.FixtureRequest,
    host: hosts.Host,
    browser: Browser,  # noqa: F811
) -> Iterator[str]:
    """Among the settings, or where reForge and Forge Classic have it, and many users of A1111."""
    before = host.get("/probe/options")["quicksettings_list"]
    wanted = ["sd_vae"] if request.param == "quick settings" else []
    place(host, ["sd_model_checkpoint"] * hosts.IS_REAL + wanted)
    if not wanted:
        settled = open_page(browser, host)
        settings(settled)
        apply(settled)  # the first time, whatever was never set counts as changed
        settled.close()
    yield request.param
    place(host, before)


def place(host: hosts.Host, quick_settings: list[str]) -> None:
    if host.get("/probe/options")["quicksettings_list"] != quick_settings:
        host.post("/sdapi/v1/options", {"quicksettings_list": quick_settings})
        host.reload()


def note(host: hosts.Host) -> Path:
    """In which the host notes a VAE for the loaded checkpoint."""
    return host.data / "models/Stable-diffusion/small.json"


def in_use(host: hosts.Host) -> str | None:
    path = host.get("/probe/state")["vae"]
    return path and Path(path).name


def tab(page: Page, name: str) -> None:
    page.locator("#tabs > .tab-nav").get_by_role("button", name=name, exact=True).click()


def dropdown(page: Page) -> Locator:
    return page.locator("#setting_sd_vae input").first


def settings(page: Page, section: str = "VAE") -> None:
    tab(page, "Settings")
    page.locator("#settings > .tab-nav, #settings > div > .tab-nav").first.get_by_role(
        "button", name=section, exact=True
    ).click()


def apply(page: Page) -> None:
    page.locator("#settings_submit").click()
    expect(page.locator("#settings_result").last).to_contain_text("settings changed")


def pick(page: Page, name: str) -> Locator:
    tab(page, "VAE")
    row = page.locator("#vg_files tr", has_text=name).first
    row.locator("button").first.click()
    expect(page.locator("#vg_details h4")).to_have_text(name)
    return row


def said(page: Page) -> Locator:
    return page.locator("#vg_said").last


def test_use_it_shows_in_the_hosts_dropdown_and_stays(page: Page, host: hosts.Host) -> None:
    settings(page)
    expect(dropdown(page)).to_have_value("None")
    row = pick(page, "other.safetensors")
    page.locator("#vg_use").click()
    expect(said(page)).to_contain_text("other.safetensors is now in use")
    expect(row).to_contain_text("in use")
    settings(page)
    expect(dropdown(page)).to_have_value("other.safetensors")
    shoot(page, "vae-in-the-dropdown")
    apply(page)
    assert in_use(host) == "other.safetensors"
    assert host.get("/probe/options")["sd_vae"] == "other.safetensors"


def test_the_checkpoints_own_vae_is_marked_as_well(page: Page) -> None:
    tab(page, "VAE")
    expect(page.locator("#vg_files").last).to_contain_text("In use now: the VAE inside the checkpoint small")


def test_always_says_what_will_really_happen(page: Page, host: hosts.Host) -> None:
    pick(page, "other-diffusers.safetensors")
    page.locator("#vg_use").click()
    expect(said(page)).to_contain_text("other-diffusers.safetensors is now in use")
    row = pick(page, "other.safetensors")
    expect(page.locator("#vg_automatic")).to_be_hidden()
    page.locator("#vg_assign").click()
    expect(said(page)).to_contain_text("without effect as long as other-diffusers.safetensors is selected")
    expect(row).to_contain_text("always with this checkpoint")
    assert json.loads(note(host).read_text())["vae"] == "other.safetensors"
    assert in_use(host) == "other-diffusers.safetensors"
    shoot(page, "vae-always-without-effect")
    page.locator("#vg_automatic").click()
    expect(said(page)).to_contain_text("SD VAE is set to Automatic. other.safetensors is now in use")
    expect(page.locator("#vg_automatic")).to_be_hidden()
    expect(row).to_contain_text("in use")
    assert in_use(host) == "other.safetensors"
    settings(page)
    expect(dropdown(page)).to_have_value("Automatic")
    tab(page, "VAE")
    expect(page.locator("#vg_assign")).to_have_text("No longer with this checkpoint")
    page.locator("#vg_assign").click()
    expect(said(page)).to_contain_text("is not tied to small")
    expect(row).not_to_contain_text("always with")
    assert not note(host).exists()
    assert in_use(host) is None


def test_always_takes_effect_at_once_where_nothing_overrides_it(page: Page, host: hosts.Host) -> None:
    host.post("/sdapi/v1/options", {"sd_vae": "Automatic"})
    pick(page, "other.safetensors")
    page.locator("#vg_assign").click()
    expect(said(page)).to_contain_text("other.safetensors is now used whenever small")
    assert in_use(host) == "other.safetensors"


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [("cut short", "is cut short"), ("a web page", "is a web page")],
    indirect=["broken"],
)
@pytest.mark.parametrize("dropdown_in", ["settings", "quick settings"], indirect=True)
def test_a_broken_file_in_the_hosts_dropdown(
    dropdown_in: str, page: Page, host: hosts.Host, broken: str, sentence: str
) -> None:
    before = len(host.log())
    is_quick = dropdown_in == "quick settings"
    if not is_quick:
        settings(page)
    assert page.locator("#quicksettings #setting_sd_vae").count() == is_quick

    def choose_it() -> None:
        dropdown(page).click()
        page.locator(f"#setting_sd_vae [data-testid=dropdown-option][data-value='{broken}']").click()
        if not is_quick:  # where it counts at once
            apply(page)
            expect(page.locator("#settings_result").last).to_contain_text("0 settings changed")
        expect(dropdown(page)).to_have_value("None")

    choose_it()
    expect(page.locator(".toast-body").first).to_contain_text(broken)
    page.wait_for_timeout(2000)
    expect(page.locator(".toast-body")).to_have_count(1)  # it stays, and once is enough
    assert host.get("/probe/options")["sd_vae"] == "None"
    assert in_use(host) is None
    told = host.log()[before:]
    assert told.count(f"VAE Guard: {broken} {sentence}") == 1
    assert "stays in use" in told
    assert "Traceback" not in told
    choose_it()  # the host's answer is the same as before
