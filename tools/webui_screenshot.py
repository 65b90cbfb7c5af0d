"""docs/page-img2img.png: the page of a real WebUI after a picture that fell back to tiles.

    WEBUI_DIR=... WEBUI_PYTHON=... python -m tools.webui_screenshot

Its checkpoint has the bundled VAE, and a UNet that knows nothing: with a denoising strength of 0 the picture is the
bundled photograph, encoded and decoded.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

SHOWN = ("VAE Guard: last decode in tiles", "Fall back if memory is short", "Decode by")
PHOTO, VAE = (ROOT / "vae_lib/data" / name for name in ("coffee.jpg", "vae_guard_tiny.safetensors"))


def generate(page: Any) -> None:
    from tests.gradio_page import open_tab
    from tests.webui.test_browser import number, open_panel

    open_tab(page, "img2img")
    page.locator("#img2img_image input[type=file]").first.set_input_files(PHOTO)
    page.locator("#img2img_prompt textarea").fill("a cup of coffee")
    for name, value in {"width": 600, "height": 400, "steps": 20, "denoising_strength": 0}.items():
        number(page, f"img2img_{name}", value)
    open_panel(page, "img2img")
    number(page, "script_img2img_vae_guard_threshold", 24)
    page.locator("#img2img_generate").click()
    page.locator("#html_log_img2img", has_text="in tiles, because only").last.wait_for()
    page.locator("#img2img_vae_guard", has_text="last decode in tiles").first.wait_for()


def area(page: Any, top: str, bottom: str) -> dict[str, float]:
    """From an element's top to another's bottom, in pixels of the page."""
    above, below = (page.locator(element).first.bounding_box() for element in (top, bottom))
    return {"x": 0, "y": above["y"], "width": 1280, "height": below["y"] + below["height"] + 4 - above["y"]}


def main() -> None:
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from tests.webui import host as hosts

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        data = Path(folder)
        hosts.prepare_data(data)
        checkpoint = data / "models/Stable-diffusion/photo.safetensors"
        hosts.make_checkpoint(VAE, checkpoint)
        host = hosts.start(data, sd_model_checkpoint=checkpoint.name, img2img_editor_height=240)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1500})
            page.set_default_timeout(240_000)
            page.goto(f"{host.url}/?__theme=light")
            generate(page)
            page.wait_for_timeout(5000)
            text = page.locator("body").inner_text()
            missing = [word for word in SHOWN if word not in text]
            assert not missing, missing
            clip = area(page, "#mode_img2img", "#img2img_vae_guard")
            taken = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip))).convert("RGB")
            dithered = taken.quantize(palette=taken.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
            dithered.save(DOCS / "page-img2img.png", optimize=True)
        finally:
            browser.close()
            host.stop()


if __name__ == "__main__":
    main()
