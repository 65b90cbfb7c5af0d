"""*Decode again in full* pressed in the page, after each of the host's scripts and ways to show pictures.

Every picture of the gallery, every file and every infotext is compared with those of before, and with what the same
generation gives in full at once.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.gradio_page import choose, open_tab, tab_button
from tests.webui import host as hosts
from tests.webui import weights
from tests.webui.scenarios import mask, photo
from tests.webui.test_browser import SECONDS, browser, number, open_page, open_panel  # noqa: F401
from tests.webui.test_decode_again import without_ours

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect

SIZE = 128
Files = dict[str, bytes]


@dataclass(frozen=True)
class Shown:
    """A picture of the gallery: its pixels (H, W, 3), and the infotext in its file."""

    pixels: np.ndarray
    text: str


@dataclass(frozen=True)
class Case:
    """What is generated, and what becomes of the gallery.

    Attributes:
        numbers: of the page's fields, by the second part of their ids.
        fields: texts, by their whole ids.
        ticks: checkboxes to click on.
        settings: the host's, meanwhile.
        becomes: "exact": as in full at once; "exact of its own": the same, but that what follows had begun with
            TAESD's pictures; "stays": nothing changes, and a sentence says so.
    """

    tab: str = "txt2img"
    script: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    ticks: tuple[str, ...] = ()
    is_inpaint: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    becomes: str = "exact"


TWO = {"batch_count": 2, "batch_size": 2}
XYZ = {"#script_txt2img_xyz_plot_x_values textarea": "3,4"}
TOO_NEW = "multiline_textsize"  # a Pillow that lacks what Forge draws its legends with
LEGEND = ("#script_txt2img_xyz_plot_draw_legend",) * hosts.IS_FORGE
CASES = {"2 x 2, grid": Case(numbers=TWO)}
if hosts.IS_REAL:  # the double's page has none of these
    CASES |= {
        "prompt matrix": Case(script="Prompt matrix", fields={"#txt2img_prompt textarea": "a cup|of tea"}),
        "X/Y/Z": Case(script="X/Y/Z plot", fields=XYZ, ticks=LEGEND),
        "X/Y/Z, its pictures too": Case(
            script="X/Y/Z plot", fields=XYZ, ticks=("#script_txt2img_xyz_plot_include_lone_images", *LEGEND)
        ),
        "Loopback": Case(
            "img2img", "Loopback", fields={"#script_loopback_loops input": "2"}, becomes="exact of its own"
        ),
        "SD upscale": Case("img2img", "SD upscale", becomes="stays"),
        "outpainting mk2": Case(
            "img2img", "Outpainting mk2", fields={"#script_outpainting_mk2_pixels input": "32"}, becomes="stays"
        ),
        "poor man's outpainting": Case(
            "img2img", "Poor man's outpainting", fields={"#script_poor_mans_outpainting_pixels input": "32"},
            becomes="stays",
        ),
        "inpaint, masks": Case(
            "img2img", is_inpaint=True, numbers={"batch_size": 2},
            settings={"return_mask": True, "return_mask_composite": True, "return_grid": False},
        ),
        "soft inpainting": Case("img2img", is_inpaint=True, ticks=("#soft_inpainting_enabled-visible-checkbox",)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def saving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    """A host that saves its pictures."""
    data = tmp_path_factory.mktemp("saving") / "data"
    hosts.prepare_data(data)
    running = hosts.start(data, samples_save=True, grid_format="png")  # Neo: JPEG
    photo().resize((2 * SIZE, 2 * SIZE)).save(data / "photo.png")
    mask().resize((2 * SIZE, 2 * SIZE)).save(data / "mask.png")
    yield running
    running.stop()


def filled(browser: Browser, host: hosts.Host, case: Case, decode_by: str) -> Page:  # noqa: F811
    """A page of its own with the case's fields, so that nothing is left in it of the generation before."""
    page = open_page(browser, host)
    tab = case.tab
    if tab == "img2img":
        open_tab(page, tab)
        uploads = {"#img2img_image": "photo.png"}
        if case.is_inpaint:
            tab_button(page, "Inpaint upload", "#mode_img2img").click()
            uploads = {"#img_inpaint_base": "photo.png", "#img_inpaint_mask": "mask.png"}
        for block, name in uploads.items():
            page.locator(f"{block} input[type=file]").first.set_input_files(host.data / name)
            expect(page.locator(f"{block} img[src]").first).to_be_visible()
    page.locator(f"#{tab}_seed input").first.fill("70")
    if case.script:
        choose(page, f"#{tab}_script_container #script_list", case.script)
    for element, text in {f"#{tab}_prompt textarea": "a cup", **case.fields}.items():
        page.locator(element).first.fill(text)
    for element in case.ticks:
        box = page.locator(element)
        (box if box.evaluate("one => one.tagName") == "INPUT" else box.locator("input")).first.click()
    open_panel(page, tab)
    choose(page, f"#script_{tab}_vae_guard_decode_by", decode_by)
    # last: Forge's preset, when the page has loaded, and a picture that was given set sizes of their own
    for name, value in {"width": SIZE, "height": SIZE, "steps": 2, **case.numbers}.items():
        number(page, f"{tab}_{name}", value)
    page.locator(f"#{tab}_generate").click()
    expect(page.locator(f"#html_log_{tab} .time").last).to_be_visible(timeout=SECONDS)
    return page


def gallery(page: Page, tab: str) -> list[Shown]:
    places = page.locator(f"#{tab}_gallery .grid-container img")
    places = places if places.count() else page.locator(f"#{tab}_gallery .thumbnails img")
    expect(places.first).to_be_attached()
    shown = []
    for source in [place.get_attribute("src") for place in places.all()]:
        assert source is not None
        with Image.open(io.BytesIO(page.request.get(source).body())) as image:
            text = image.info.get("parameters", "")  # of the grids of some scripts it is "None"
            shown.append(Shown(np.asarray(image.convert("RGB")), "" if text == "None" else text))
    return shown


def files(host: hosts.Host) -> Files:
    """All that the host has saved, by name."""
    found = host.data.glob("output*/**/*.*")  # Forge Classic's is "output"
    return {str(path): path.read_bytes() for path in found if path.is_file()}


def assert_same(ones: list[Shown], others: list[Shown]) -> None:
    assert [one.pixels.shape for one in ones] == [other.pixels.shape for other in others]
    assert [
        int(np.abs(one.pixels.astype(int) - other.pixels).max()) for one, other in zip(ones, others, strict=True)
    ] == [0] * len(ones)
    assert [one.text for one in ones] == [other.text for other in others]


def as_saved(before: Files, after: Files) -> list[np.ndarray]:
    new = sorted(set(after) - set(before))
    return [np.asarray(Image.open(io.BytesIO(after[name])).convert("RGB")) for name in new if name.endswith(".png")]


def is_among(one: np.ndarray, others: list[np.ndarray]) -> bool:
    return any(one.shape == other.shape and np.array_equal(one, other) for other in others)


def press(page: Page, tab: str) -> None:
    again = page.locator(f"#{tab}_vae_guard_again")
    expect(again).to_be_visible()
    again.click()
    expect(again).to_be_hidden(timeout=SECONDS)


@pytest.mark.parametrize("name", CASES)
def test_in_the_page(browser: Browser, saving: hosts.Host, name: str) -> None:  # noqa: F811
    case, tab = CASES[name], CASES[name].tab
    with saving.options(**case.settings):
        failed = saving.log().count(TOO_NEW)
        page = filled(browser, saving, case, "Full")
        if saving.log().count(TOO_NEW) > failed:
            pytest.skip("this host cannot draw a legend with its Pillow")
        full = gallery(page, tab)
        page.close()
        page = filled(browser, saving, case, "TAESD")
        before, saved = gallery(page, tab), files(saving)
        assert [one.pixels.shape for one in before] == [one.pixels.shape for one in full]
        if case.becomes == "stays":
            expect(page.locator(f"#{tab}_vae_guard_again_note").first).to_contain_text("VAE > Unfinished")
            expect(page.locator(f"#{tab}_vae_guard_again")).to_be_hidden()
            assert any(item["decoded_by"] == "taesd" and item["file"] for item in saving.get("/vae-guard/latents"))
            assert_same(gallery(page, tab), before)
            page.close()
            return
        press(page, tab)
        after, later = gallery(page, tab), files(saving)
        shown = page.locator(f"#html_info_{tab}").last.inner_text()
        page.close()
    assert all(later[path] == content for path, content in saved.items())
    assert [one.pixels.shape for one in after] == [one.pixels.shape for one in before]
    masks = [bool(case.settings) and not one.text for one in before]
    assert "decoded again" in shown
    old_files, new_files = as_saved({}, saved), as_saved(saved, later)
    for old, one, wanted, is_mask in zip(before, after, full, masks, strict=True):
        if is_mask:  # or a composite of one, which is TAESD's
            assert np.array_equal(one.pixels, old.pixels)
            continue
        assert "decoded again" in one.text
        assert without_ours(one.text) == without_ours(old.text) or not old.text
        assert np.abs(one.pixels.astype(int) - old.pixels).max() > 8
        assert is_among(one.pixels, new_files) or not is_among(old.pixels, old_files)
        if case.becomes == "exact":
            assert np.abs(one.pixels.astype(int) - wanted.pixels).max() <= 1
            assert without_ours(one.text) == without_ours(wanted.text) or not wanted.text
    if case.becomes == "exact of its own":  # a grid, and what it is made of
        grid, *parts = [one.pixels for one in after]
        assert np.abs(parts[0].astype(int) - full[1].pixels).max() <= 1
        assert np.array_equal(grid, np.concatenate(parts, axis=1))


def by_setting(host: hosts.Host, page: Page) -> None:
    host.use_vae("None")


def by_use_it(host: hosts.Host, page: Page) -> None:
    open_tab(page, "VAE")
    open_tab(page, "Files", "#vg_tabs")
    row = page.locator("#vg_files").last.locator("tr", has_text="twin.safetensors").last  # of another seed
    row.locator("button").first.click()
    expect(page.locator("#vg_details").last).to_contain_text("twin.safetensors")
    page.locator("#vg_use").click()
    expect(row).to_contain_text("in use")
    page.wait_for_timeout(1000)  # a dropdown in the quick settings that shows it chooses it once more
    open_tab(page, "txt2img")


def by_another_file(host: hosts.Host, page: Page) -> None:
    file = host.data / "models/VAE/passing.safetensors"
    weights.save_vae(file, weights.vae(9))
    os.utime(file, (4e9, 4e9))  # the host knows a file's hash by its time
    host.use_vae("None")


def by_no_file(host: hosts.Host, page: Page) -> None:
    (host.data / "models/VAE/passing.safetensors").unlink()
    host.post("/sdapi/v1/refresh-vae")
    host.use_vae("None")


CHANGES: dict[str, tuple[Callable[[hosts.Host, Page], None], str]] = {
    "by setting": (by_setting, ""),
    "by Use it": (by_use_it, ""),
    "its file is another one": (by_another_file, "is another file now"),
    "its file is gone": (by_no_file, "is not there any more"),
}
if hosts.IS_FORGE:  # whose list of modules is refreshed by its page alone
    del CHANGES["its file is another one"], CHANGES["its file is gone"]


@pytest.mark.parametrize("name", CHANGES)
def test_the_vae_was_changed(browser: Browser, saving: hosts.Host, name: str) -> None:  # noqa: F811
    """The generation's decodes, and what was chosen since stays; if it is not there, nothing changes."""
    change, sentence = CHANGES[name]
    file = saving.data / "models/VAE/passing.safetensors"
    shutil.copy(file.with_name("other.safetensors"), file)
    vae = "other.safetensors" if hosts.IS_FORGE else file.name
    if not hosts.IS_FORGE:
        saving.post("/sdapi/v1/refresh-vae")
    saving.use_vae(vae)
    try:
        page = filled(browser, saving, Case(), "Full")
        (full,) = gallery(page, "txt2img")
        page.close()
        page = filled(browser, saving, Case(), "TAESD")
        before, saved = gallery(page, "txt2img"), files(saving)
        change(saving, page)
        in_use = saving.vae_in_use()
        again = page.locator("#txt2img_vae_guard_again")
        again.click()
        if sentence:
            expect(page.locator("#html_log_txt2img").last).to_contain_text(sentence)
            expect(again).to_be_visible()
            assert_same(gallery(page, "txt2img"), before)
            assert files(saving) == saved
            return
        expect(again).to_be_hidden(timeout=SECONDS)
        (after,) = gallery(page, "txt2img")
        assert np.abs(after.pixels.astype(int) - full.pixels).max() <= 1
        assert without_ours(after.text) == without_ours(full.text)
        later = files(saving)
        assert all(later[path] == content for path, content in saved.items())
        assert is_among(after.pixels, as_saved(saved, later))
        assert saving.vae_in_use() == in_use
    finally:
        page.close()
        file.unlink(missing_ok=True)
        saving.use_vae("None")
