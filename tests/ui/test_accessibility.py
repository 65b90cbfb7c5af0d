"""Who cannot see the page well, or has no mouse: axe-core over each section, and the keyboard."""

from __future__ import annotations

import pytest

from tests.accessibility import violations
from tests.gradio_page import html
from tests.ui.test_tab import ROW, Browser, Page, Site, browser, choose_vaes, expect, folder, open_section, page, site

__all__ = ["browser", "folder", "page", "site"]  # the fixtures
pytestmark = pytest.mark.slow


def compare(page: Page) -> None:
    """The bundled photograph by two routes, with their difference."""
    open_section(page, "Compare")
    choose_vaes(page, "vae_guard_tiny.safetensors")
    page.locator("#vg_compare").click()
    expect(page.locator("#vg_difference img")).to_be_visible(timeout=120_000)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (390, "dark")])
def test_nothing_serious_is_wrong(browser: Browser, site: Site, width: int, theme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{site.address}?__theme={theme}")
    expect(page.locator(ROW, has_text="plain.safetensors")).to_be_visible(timeout=120_000)
    page.get_by_role("button", name="plain.safetensors", exact=True).click()
    expect(html(page, "#vg_details")).to_contain_text("SHA-256", timeout=120_000)
    assert violations(page, "#vg_tabs") == []
    compare(page)
    assert violations(page, "#vg_tabs") == []
    open_section(page, "Memory")
    expect(page.locator("#vg_plot polyline").first).to_be_attached(timeout=120_000)
    assert violations(page, "#vg_tabs") == []
    open_section(page, "Downloads")
    page.locator("#vg_reference textarea, #vg_reference input").fill("nothing like it")
    page.locator("#vg_download").click()
    expect(html(page, "#vg_download_said")).to_contain_text("is not in the catalog", timeout=120_000)
    assert violations(page, "#vg_tabs") == []
    page.close()


def test_a_file_is_chosen_by_the_keyboard(page: Page) -> None:
    page.get_by_role("button", name="page.safetensors", exact=True).focus()
    page.keyboard.press("Tab")  # to the next row's
    page.keyboard.press("Enter")
    expect(html(page, "#vg_details")).to_contain_text("SDXL, by its metadata")
    expect(page.locator("#vg_use")).to_be_enabled()


def test_pictures_are_compared_by_the_keyboard(page: Page) -> None:
    compare(page)
    chosen = page.locator("#vg_gallery .preview .thumbnails .selected img")
    first = page.locator("#vg_gallery .grid-container button").first
    page.locator("#vg_limit input").focus()
    for _ in range(8):  # past the buttons
        page.keyboard.press("Tab")
        if first.evaluate("element => element === document.activeElement"):
            break
    expect(first).to_be_focused()
    page.keyboard.press("Enter")
    expect(chosen).to_have_count(1)
    shown = chosen.get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(chosen).not_to_have_attribute("src", shown or "")
    page.keyboard.press("ArrowLeft")
    expect(chosen).to_have_attribute("src", shown or "")
    # what is amplified is chosen by the arrows as well
    gain = page.locator("#vg_gain input")
    gain.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(gain).not_to_have_value("Until visible")
