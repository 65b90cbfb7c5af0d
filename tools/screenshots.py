"""The pictures of the page in docs/: the tab VAE by itself (python -m vae_lib ui), in a real Chromium.

    python -m tools.screenshots          # needs Chromium and the packages of tests/requirements.txt

The pictures in them are the bundled photograph, encoded and decoded by the bundled VAE. SHOWN are words that must be on
the page when a picture is taken; a test holds them against the sources, so that no picture is of an older page.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"

SHOWN = {
    "page-compare": ["Decode", "VAEs", "Routes", "Against the original", "Difference of", "Amplified"],
    "page-memory": ["Width", "Would take now", "Needs at least", "Goes up to", "Check this device", "this size"],
}


def compare(page: Any) -> None:
    page.locator("#vg_tabs > .tab-nav button", has_text="Compare").click()
    page.locator("#vg_vaes .token", has_text="bundled").wait_for()  # what it begins with
    page.get_by_label("Full", exact=True).check()
    page.get_by_label("Automatic", exact=True).uncheck()
    page.locator("#vg_compare").click()
    page.locator("#vg_difference img").wait_for()
    page.locator("#vg_gallery img").first.wait_for()


def memory(page: Any) -> None:
    page.locator("#vg_tabs > .tab-nav button", has_text="Memory").click()
    page.locator("#vg_plot svg.vg-desk").wait_for()
    for name in ("width", "height"):
        page.wait_for_timeout(5000)
        page.locator(f"#vg_{name} input").fill("2048")
    page.locator("#vg_reach", has_text="With 3.0 GB free").first.wait_for()
    page.wait_for_timeout(8000)


def main() -> None:
    from playwright.sync_api import sync_playwright

    from vae_lib.ui import backend
    from vae_lib.ui.app import launch

    backend.free_memory = lambda device: 3 * 10**9  # so that the choice is of interest
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = launch(Path(folder), open_browser=False, block=False)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, prepare in (("page-compare", compare), ("page-memory", memory)):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(240_000)
            page.goto(f"{app.local_url}?__theme=light")
            page.locator("#vg_files tbody tr").first.wait_for()
            prepare(page)
            text = page.locator("body").inner_text()
            missing = [word for word in SHOWN[name] if word not in text and not page.get_by_text(word).count()]
            assert not missing, missing
            page.screenshot(path=DOCS / f"{name}.png", full_page=True)
        browser.close()
        app.server.force_exit = True
        app.close()


if __name__ == "__main__":
    main()
