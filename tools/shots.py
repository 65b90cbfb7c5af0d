"""Pictures of the extension's page in a WebUI, for docs/: ``python -m tools.shots forge docs`` (or neo, reforge).

The WebUI is that of ``WEBUI_DIR`` and ``WEBUI_PYTHON``, else the double; its weights are the tests' small ones.
One sheet in its light theme and one in its dark.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.gradio_page import choose, open_tab
from tests.webui import host as hosts
from tests.webui.test_browser import FLAGS, expect, generate, open_page, open_panel

SIZE, SHOWN, GAP = (1200, 760), 560, 12  # of the window; the width of each picture in the sheet; between them
SECTIONS = ("Files", "Compare", "Memory", "Downloads", "Unfinished")
COLOURS = {"light": "#ffffff", "dark": "#0b0f19"}


def main(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        hosts.prepare_data(Path(data))
        running = hosts.start(Path(data))
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[f"--{flag}" for flag in FLAGS.split()]
        )
        try:
            for theme, colour in COLOURS.items():
                sheet(pictures(browser, running, theme), colour).save(folder / f"{name}-{theme}.png", optimize=True)
        finally:
            browser.close()
            running.stop()


def pictures(browser: Browser, host: hosts.Host, theme: str) -> list[Image.Image]:
    """The panel with a picture below it, the settings, and each section of the tab."""
    page = open_page(browser, host, SIZE, query=f"?__theme={theme}")
    open_panel(page)
    choose(page, "#script_txt2img_vae_guard_decode_by", "Tiled")
    generate(page)
    page.locator("#txt2img_vae_guard").scroll_into_view_if_needed()
    taken = [shoot(page)]
    open_tab(page, "Settings")
    open_tab(page, "VAE Guard", "#settings")
    expect(page.locator("#setting_vae_guard_keep")).to_be_visible()
    page.locator("#setting_vae_guard_mode").evaluate("element => element.scrollIntoView()")
    taken.append(shoot(page))
    open_tab(page, "VAE")
    for section in SECTIONS:
        open_tab(page, section, "#vg_tabs")
        if section == "Memory":
            page.locator("#vg_plot polyline").first.wait_for(state="attached")  # predicting takes seconds
        taken.append(shoot(page))
    page.close()
    return taken


def shoot(page: Page) -> Image.Image:
    page.wait_for_timeout(3000)  # what is still being fetched, and the last animation
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((SHOWN, SHOWN * picture.height // picture.width), Image.Resampling.LANCZOS)


def sheet(taken: list[Image.Image], colour: str) -> Image.Image:
    """In two columns."""
    height = taken[0].height + GAP
    made = Image.new("RGB", (2 * SHOWN + GAP, (len(taken) + 1) // 2 * height - GAP), colour)
    for number, picture in enumerate(taken):
        made.paste(picture, (number % 2 * (SHOWN + GAP), number // 2 * height))
    return made.quantize(256)  # fewer make the labels of coloured buttons unreadable


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
