"""The page in a real browser, at a desk's width and at a phone's."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.webui.host import IS_FORGE, Host

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.accessibility import violations
from tests.gradio_page import choose, html, open_tab

SECONDS = 120_000  # milliseconds: a page on a busy machine takes as long as it takes
DESK, PHONE = (1280, 900), (390, 844)
SHOTS = os.environ.get("SCREENSHOTS")  # a folder in which to leave pictures of the page
FALLBACK = "Fall back if memory is short"
FLAGS = (
    "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-dev-shm-usage"
)
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        reason = "Chromium is not installed (on Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in FLAGS.split()])
        yield running
        running.close()


def open_page(browser: Browser, host: Host, size: tuple[int, int] = DESK, query: str = "", **context: Any) -> Page:
    """The host's page, ready for use. Nothing outside of this machine is asked for."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **context)
    page.set_default_timeout(SECONDS)
    page.route("**/*", lambda route: route.continue_() if "127.0.0.1" in route.request.url else route.abort())
    page.goto(host.url + query, wait_until="domcontentloaded")
    expect(page.locator("#txt2img_generate")).to_be_visible(timeout=SECONDS)
    page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 5")
    return page


@pytest.fixture
def page(browser: Browser, host: Host) -> Iterator[Page]:
    opened = open_page(browser, host)
    yield opened
    opened.close()


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def number(page: Page, element: str, value: float) -> None:
    field = page.locator(f"#{element} input[type=number]").first
    field.fill(str(value))
    field.press("Tab")


def open_panel(page: Page, tab: str = "txt2img") -> Locator:
    panel = page.locator(f"#{tab}_vae_guard")
    if not panel.get_by_label(FALLBACK).is_visible():
        panel.locator(".label-wrap").click()
    expect(panel.get_by_label(FALLBACK)).to_be_visible()
    return panel


def generate(page: Page) -> None:
    """A small picture; back when it and what is told below it are there."""
    page.locator("#txt2img_prompt textarea").fill("a cup")
    for name, value in (("width", 128), ("height", 128), ("steps", 1), ("seed", 1)):
        number(page, f"txt2img_{name}", value)
    before = page.locator("#html_log_txt2img").last.inner_text()
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        "before => { const text = [...document.querySelectorAll('#html_log_txt2img')].at(-1).innerText;"
        " return text.includes('Time taken') && text !== before; }",
        arg=before,
        timeout=SECONDS,
    )
    expect(page.locator("#txt2img_gallery img").first).to_be_visible(timeout=SECONDS)


def infotext(page: Page) -> Locator:
    return page.locator("#html_info_txt2img").last


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk", "phone"])
def test_the_panel_is_one_line_until_it_is_opened(
    browser: Browser, host: Host, size: tuple[int, int], scheme: str
) -> None:
    page = open_page(browser, host, size, color_scheme=scheme)
    panel = page.locator("#txt2img_vae_guard")
    panel.scroll_into_view_if_needed()
    closed = panel.bounding_box()
    assert closed is not None
    assert closed["height"] <= 60
    assert not panel.get_by_label(FALLBACK).is_visible()
    shoot(page, f"panel-closed-{size[0]}")
    open_panel(page)
    opened = panel.bounding_box()
    assert opened is not None
    assert opened["height"] > closed["height"]
    for label in (FALLBACK, "Decode by"):
        box = panel.get_by_label(label).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
    shoot(page, f"panel-open-{size[0]}")
    page.close()


def test_the_panel_is_in_img2img_as_well(page: Page) -> None:
    open_tab(page, "img2img")
    panel = open_panel(page, "img2img")
    expect(panel.get_by_label("Decode by")).to_have_value("Auto")


def test_an_idle_page_asks_for_nothing(browser: Browser, host: Host) -> None:
    """Events that call forth themselves would keep the WebUI busy for as long as the page is open."""
    page = open_page(browser, host)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))  # gradio 3's
    events = ["/queue/"]  # loading the page has some, which take as long as they take
    for _ in range(20):
        asked.clear()
        page.wait_for_timeout(3000)
        events = [url for url in asked if "queue" in url or "/run/" in url]
        if not events:
            break
    page.close()
    assert events == []


def test_a_picture_says_how_it_was_decoded(page: Page) -> None:
    generate(page)
    expect(infotext(page)).to_contain_text("VAE Guard: full")
    shoot(page, "generated-1280")


def test_what_is_chosen_in_the_panel_is_done(page: Page) -> None:
    open_panel(page)
    choose(page, "#script_txt2img_vae_guard_decode_by", "Tiled")
    generate(page)
    expect(infotext(page)).to_contain_text("VAE Guard decode by: Tiled")


def test_a_fallback_is_told_below_the_picture(page: Page) -> None:
    open_panel(page)
    number(page, "script_txt2img_vae_guard_threshold", 1000)
    generate(page)
    said = re.compile(r"VAE Guard: .*128x128.* in tiles.* 1000 GB")
    expect(page.locator("#html_log_txt2img").last).to_contain_text(said)
    expect(page.locator(".toast-body").first).to_contain_text(said)
    shoot(page, "fallback-1280")


def test_pasting_an_infotext_sets_the_panel(page: Page, host: Host) -> None:
    text = host.generate(guard=[False, "Tiled", 2.5]).infotext
    panel = open_panel(page)
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#paste").first.click()
    expect(panel.get_by_label("Decode by")).to_have_value("Tiled")
    expect(panel.get_by_label(FALLBACK)).not_to_be_checked()
    expect(page.locator("#script_txt2img_vae_guard_threshold input")).to_have_value("2.5")
    expect(page.locator("#txt2img_prompt textarea")).to_have_value("a cup")


def test_send_to_img2img_takes_the_panel_along(page: Page) -> None:
    panel = open_panel(page)
    choose(page, "#script_txt2img_vae_guard_decode_by", "Tiled")
    number(page, "script_txt2img_vae_guard_threshold", 2.5)
    panel.get_by_label(FALLBACK).uncheck()
    generate(page)  # there must be a picture to send
    page.locator("#txt2img_send_to_img2img").click()
    open_tab(page, "img2img")
    panel = open_panel(page, "img2img")
    expect(page.locator("#img2img_prompt textarea")).to_have_value("a cup")
    expect(panel.get_by_label("Decode by")).to_have_value("Tiled")
    expect(panel.get_by_label(FALLBACK)).not_to_be_checked()
    expect(page.locator("#script_img2img_vae_guard_threshold input")).to_have_value("2.5")


def test_a_taesd_picture_can_be_decoded_again_in_full(page: Page) -> None:
    open_panel(page)
    button = page.get_by_role("button", name="Decode again in full")
    expect(button).to_be_hidden()
    choose(page, "#script_txt2img_vae_guard_decode_by", "TAESD")
    generate(page)
    expect(infotext(page)).to_contain_text("VAE Guard: TAESD")
    pictures = page.locator("#txt2img_gallery .thumbnails img, #txt2img_gallery .grid-container img")
    before = pictures.count()
    button.click()
    expect(page.locator("#html_log_txt2img").last).to_contain_text("decoded again", timeout=SECONDS)
    assert pictures.count() == before  # at its own place
    expect(button).to_be_hidden()
    shoot(page, "decoded-again-1280")


def test_the_settings_have_a_section(page: Page) -> None:
    open_tab(page, "Settings")
    open_tab(page, "VAE Guard", "#settings")
    for key in ("mode", "threshold", "fallback", "reserve", "encode", "keep"):
        expect(page.locator(f"#setting_vae_guard_{key}")).to_be_visible()
    shoot(page, "settings-1280")


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_vae_tab_lists_the_files_and_says_what_is_in_use(
    browser: Browser, host: Host, size: tuple[int, int]
) -> None:
    host.use_vae("other.safetensors")
    page = open_page(browser, host, size)
    open_tab(page, "VAE")
    table = page.locator("#vg_files").last
    for name in ("other.safetensors", "other-diffusers.safetensors", "wrong.safetensors", "twin.safetensors"):
        expect(table).to_contain_text(name)
    expect(table).to_contain_text("diffusers")
    expect(table.locator("tr", has_text="other.safetensors").first).to_contain_text("in use")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    shoot(page, f"vae-tab-{size[0]}")
    host.use_vae("None")
    page.close()


def test_a_vae_is_put_into_use_from_the_tab(page: Page, host: Host) -> None:
    open_tab(page, "VAE")
    table = page.locator("#vg_files").last
    table.get_by_role("button", name="other-diffusers.safetensors").click()
    expect(page.locator("#vg_details").last).to_contain_text("other-diffusers.safetensors")
    page.locator("#vg_use").click()
    expect(table.locator("tr", has_text="other-diffusers.safetensors")).to_contain_text("in use")
    assert (host.vae_in_use() or "").endswith("other-diffusers.safetensors")
    if IS_FORGE:  # the others' dropdown: test_choosing
        label = page.locator(
            "[data-testid=block-info]", has_text=re.compile(r"^VAE / Text Encoder\??$")
        )  # Neo adds a link
        expect(page.locator("label", has=label).locator(".token")).to_have_text("other-diffusers.safetensors")
    page.wait_for_timeout(1000)  # a dropdown in the quick settings that shows it chooses it once more
    host.use_vae("None")


def test_the_tab_shows_what_was_chosen_elsewhere_in_the_meantime(page: Page, host: Host) -> None:
    open_tab(page, "VAE")
    row = page.locator("#vg_files").last.locator("tr", has_text="other-diffusers.safetensors")
    expect(row).not_to_contain_text("in use")
    open_tab(page, "txt2img")
    host.use_vae("other-diffusers.safetensors")
    open_tab(page, "VAE")
    expect(row).to_contain_text("in use")
    host.use_vae("None")


def test_compare_begins_with_the_last_latents_and_the_checkpoints_own_vae(page: Page, host: Host) -> None:
    wanted = host.generate(seed=4).images[0]
    open_tab(page, "VAE")
    open_tab(page, "Compare", "#vg_tabs")
    expect(page.locator("#vg_vaes .token")).to_contain_text("(in the checkpoint) ")
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("2 decoded", timeout=SECONDS)
    expect(page.locator("#vg_results tbody tr").last).to_contain_text(re.compile("Identical|PSNR"))
    address = page.locator("#vg_gallery img").first.evaluate("image => image.src")
    with Image.open(io.BytesIO(page.request.get(address).body())) as shown:
        assert np.abs(np.asarray(shown.convert("RGB")).astype(int) - wanted).max() <= 1


def test_only_the_section_that_is_open_looks_again(page: Page) -> None:
    """Predicting for Memory takes a second."""
    page.evaluate(
        """() => { window.looked = []; document.querySelectorAll("#vg_tabs .vg-look").forEach(
            (look, number) => look.addEventListener("click", () => looked.push(number))); }"""
    )
    open_tab(page, "VAE")
    open_tab(page, "Memory", "#vg_tabs")
    open_tab(page, "txt2img")
    open_tab(page, "VAE")
    page.wait_for_function("looked.length > 1")
    assert page.evaluate("looked") == [0, 2]


def test_what_the_webui_cannot_do_is_not_offered(page: Page) -> None:
    """Forge has no VAE of its own for each checkpoint."""
    open_tab(page, "VAE")
    expect(page.locator("#vg_use")).to_be_visible()
    expect(page.locator("#vg_assign")).to_be_visible(visible=not IS_FORGE)


def controls_without_a_hint(page: Page, inside: str) -> list[str]:
    """Of the fields and buttons inside an element: those neither of which, nor whose surroundings, have a title."""
    found: list[str] = page.eval_on_selector_all(
        f"{inside} :is(input, textarea:enabled, select, button:not(.copy-text, .label-wrap, [aria-label=Copy]))",
        """elements => elements
            .filter(e => !e.closest('[title]:not([title=""]), .vg-hidden, .tab-nav, .vg, table'))
            .map(e => (e.closest('[id]') || e).id + ' ' + e.outerHTML.slice(0, 120))""",
    )
    return found


def test_every_control_says_what_it_does(page: Page) -> None:
    for inside in ("#txt2img_vae_guard", "#img2img_vae_guard", "#tab_vae_guard_tab"):
        assert page.locator(inside).count() == 1
        found = controls_without_a_hint(page, inside)
        assert not found, "\n".join(found)
    expect(page.locator("#txt2img_vae_guard_again")).to_have_attribute("title", re.compile("exact picture"))
    expect(page.locator("#settings")).to_contain_text("img2img, inpaint, hires fix")  # beside its option


def test_a_control_without_effect_is_disabled(page: Page) -> None:
    panel = open_panel(page)
    assert violations(page, "#txt2img_vae_guard") == []
    threshold = page.locator("#script_txt2img_vae_guard_threshold input")
    expect(threshold).to_be_enabled()
    panel.get_by_label(FALLBACK).uncheck()
    expect(threshold).to_be_disabled()
    panel.get_by_label(FALLBACK).check()
    expect(threshold).to_be_enabled()
    page.locator("#tabs > .tab-nav button", has_text="Settings").first.click()
    page.locator("#settings > .tab-nav button", has_text="VAE Guard").click()
    slider = page.locator("#setting_vae_guard_threshold input[type=range]")
    expect(slider).to_be_disabled()
    page.locator("#setting_vae_guard_mode").get_by_label("Fixed threshold").check()
    expect(slider).to_be_enabled()


def test_a_number_that_cannot_be_is_answered_with_a_sentence(page: Page, host: Host) -> None:
    open_panel(page)
    number(page, "script_txt2img_vae_guard_threshold", -7)
    generate(page)
    expect(page.locator("#html_log_txt2img").last).to_contain_text("must be a number of GB from 0 to 1024, not -7")
    assert "Traceback" not in host.log().rpartition("not -7")[2]


def test_the_header_says_what_the_last_decode_did(page: Page) -> None:
    open_panel(page)
    choose(page, "#script_txt2img_vae_guard_decode_by", "Tiled")
    generate(page)
    header = page.locator("#txt2img_vae_guard .label-wrap").first
    expect(header).to_contain_text(re.compile(r"VAE Guard: last decode in tiles, [\d.]+ m?s, [\d.]+ [kM]B"))
