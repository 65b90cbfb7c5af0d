"""A picture decoded again is the picture: what the same seed gives in full at once, in its file's metadata too."""

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

from tests.gradio_page import choose
from tests.webui import host as hosts
from tests.webui import weights
from tests.webui.scenarios import HIRES, IMG2IMG, SCENARIOS, UPSCALER, mask
from tests.webui.test_browser import SECONDS, browser, number, open_page, open_panel, shoot  # noqa: F401
from tests.webui.test_pictures import assert_close, entry

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Locator, Page, expect

FULL, TAESD = [False, "Full", 0], [False, "TAESD", 0]
ONLY_MASKED: dict[str, Any] = {
    **IMG2IMG, "mask": hosts.encode(mask()), "inpainting_fill": 1, "inpaint_full_res": True,
    "inpaint_full_res_padding": 12, "mask_blur": 4, "seed": 9,
    "override_settings": {"img2img_color_correction": True},
}  # fmt: skip
SOFT: dict[str, Any] = {"alwayson_scripts": {"Soft Inpainting": {"args": [True]}}}
KINDS: dict[str, dict[str, Any]] = {
    "txt2img": {"prompt": "a cup,\nof tea", "negative_prompt": "blurry: very", "subseed": 3},
    "tiling": {"tiling": True},
    "hires fix, latent": {**HIRES, "hr_upscaler": "Latent"},
    "hires fix, picture": {**HIRES, "hr_upscaler": UPSCALER},
    "refiner": SCENARIOS["refiner"],
    "another checkpoint": {
        "override_settings": {"sd_vae": "Automatic", "sd_model_checkpoint": "small_with_noted_vae"}
    },
    "img2img": {**IMG2IMG, "override_settings": {"img2img_color_correction": True}},
    "inpaint": SCENARIOS["inpaint"],
    "inpaint, only masked": ONLY_MASKED,
    "inpaint, only masked, 2 x 2": {
        **ONLY_MASKED, "batch_size": 2, "n_iter": 2,
        "override_settings": {"img2img_color_correction": True, "return_mask": True},
    },
    "soft inpainting": {**ONLY_MASKED, **SOFT},
    "soft inpainting, nothing else laid over": {
        **SCENARIOS["inpaint"], **SOFT, "batch_size": 2, "override_settings": {"overlay_inpaint": False},
    },
    "2 x 2": {"batch_size": 2, "n_iter": 2, "seed": 40},
}  # fmt: skip
if not hosts.IS_REAL:  # whose face restoration is a large download
    KINDS["face restoration"] = {"restore_faces": True}
if hosts.IS_FORGE:  # which has neither of the three
    for missing in ("tiling", "refiner", "another checkpoint"):
        del KINDS[missing]
if hosts.IS_NEO:  # which has no upscalers of latents
    del KINDS["hires fix, latent"]


def pictures(made: hosts.Picture, count: int) -> tuple[list[np.ndarray], list[str]]:
    images, texts = made.images, made.infotexts
    if len(texts) > count:
        images, texts = images[1:], texts[1:]
    step = len(images) // count
    return images[::step], texts


def made(host: hosts.Host, kind: dict[str, Any], guard: Any) -> tuple[list[np.ndarray], list[str]]:
    """Without the grid and the masks: pictures and infotexts of a generation.

    A1111's first of a kind rounds otherwise than those after it, of which soft inpainting makes up to 15 of 255; so
    let each be the first.
    """
    if "alwayson_scripts" in kind:
        host.generate()
    return pictures(host.generate(**kind, guard=guard), count_of(kind))


def count_of(kind: dict[str, Any]) -> int:
    return int(kind.get("batch_size", 1)) * int(kind.get("n_iter", 1))


def without_ours(text: str) -> str:
    """An infotext without the entries that tell of the decode."""
    return re.sub(r', VAE Guard(?: decode by| fallback)?: (?:"(?:\\.|[^"\\])*"|[^,]*)', "", text)


def assert_is(again: hosts.Picture, images: list[np.ndarray], texts: list[str], most: int = 1) -> None:
    assert len(again.images) == len(images)
    for one, other in zip(again.images, images, strict=True):
        assert_close(one, other, most)
    assert list(map(without_ours, again.infotexts)) == list(map(without_ours, texts))
    assert all("decoded again" in (entry(text) or "") for text in again.infotexts)
    assert not any("decode by" in text for text in again.infotexts)


def in_order(host: hosts.Host, count: int) -> hosts.Picture:
    """All pictures of the last generation, decoded again batch by batch."""
    images: list[np.ndarray] = []
    texts: list[str] = []
    index = 0
    while len(images) < count:
        assert host.get("/vae-guard/latents")[index]["decoded_by"] in ("taesd", None)
        again = host.decode_again(index)
        images, texts, index = again.images + images, again.infotexts + texts, index + 1
    return hosts.Picture(images, texts, [])


@pytest.mark.parametrize("name", KINDS)
def test_taesds_picture_becomes_the_picture(host: hosts.Host, name: str) -> None:
    kind, count = KINDS[name], count_of(KINDS[name])
    images, texts = made(host, kind, FULL)
    approximate, _ = made(host, kind, TAESD)
    assert any(np.abs(one.astype(int) - other).max() > 8 for one, other in zip(images, approximate, strict=True))
    assert_is(in_order(host, count), images, texts)
    assert not any(item["file"] for item in host.get("/vae-guard/latents"))
    usual, _ = pictures(host.generate(**KINDS["txt2img"], guard=FULL), 1)  # settings and checkpoint are as before
    again, _ = pictures(host.generate(**KINDS["txt2img"], guard=FULL), 1)
    assert_close(usual[0], again[0])


@pytest.fixture
def forgetful(host: hosts.Host) -> Iterator[hosts.Host]:
    """A host that puts back what a kind overrides: it does so only with what its file has."""
    with host.options(overlay_inpaint=True, img2img_color_correction=False, return_mask=False):
        yield host


def test_latents_on_disk_become_the_pictures(forgetful: hosts.Host) -> None:
    """Of every kind, failed in its decode, and after Reload UI there is nothing of it in RAM."""
    host, wanted = forgetful, {}
    for name, kind in KINDS.items():
        if name in ("refiner", "another checkpoint", "hires fix, picture"):
            continue  # whose VAE the probe cannot break beforehand; or the first pass fails, which is not kept
        wanted[name] = made(host, kind, FULL)
    host.post("/probe/break")
    try:
        for name in wanted:
            if hosts.IS_NEO:  # which goes on with a black picture, and corrects its colours
                host.generate(**KINDS[name])
                continue
            with pytest.raises(hosts.ApiError, match="vae-guard-latents"):
                host.generate(**KINDS[name])
    finally:
        host.post("/probe/mend")
    host.reload()
    listed = [item for item in host.get("/vae-guard/latents") if item["file"]]
    # the first batch fails, and the generation with it
    batches = {name: KINDS[name].get("n_iter", 1) if hosts.IS_NEO else 1 for name in wanted}
    assert len(listed) == sum(batches.values())
    for name, (images, texts) in reversed(wanted.items()):
        size = KINDS[name].get("batch_size", 1)
        for batch in reversed(range(batches[name])):
            part = slice(batch * size, (batch + 1) * size)
            # what failed was not the first of its kind (see ``made``); without its blend it would be 90 of 255
            most = 15 if "alwayson_scripts" in KINDS[name] else 1
            assert_is(host.decode_again(), images[part], texts[part], most)


def test_inpainting_killed_in_its_decode(tmp_path: Path) -> None:
    from tests.webui.test_unfinished import killed_in_a_decode

    large = {**ONLY_MASKED, "width": 384, "height": 384}
    with killed_in_a_decode(tmp_path, **large) as (again, whole):
        finished = again.decode_again()
        assert_close(finished.images[0], whole.images[0])
        assert without_ours(finished.infotext) == without_ours(whole.infotext)


@pytest.fixture
def chosen(host: hosts.Host) -> Iterator[hosts.Host]:
    """A host whose choice of a VAE is put back."""
    yield host
    host.use_vae("None")
    host.generate()  # Forge loads with it


def test_the_vae_of_the_generation_decodes(chosen: hosts.Host) -> None:
    """Whatever was chosen since; and what was chosen since stays."""
    host = chosen
    wanted = {}
    for name, later in (("None", "other.safetensors"), ("other.safetensors", "None")):
        host.use_vae(name)
        wanted[name] = host.generate(guard=FULL)
        host.generate(guard=TAESD)
        host.use_vae(later)
        before = host.vae_in_use()
        again = host.decode_again()
        assert_close(again.images[0], wanted[name].images[0])
        assert without_ours(again.infotext) == without_ours(wanted[name].infotext)
        assert host.vae_in_use() == before
    assert np.abs(wanted["None"].images[0].astype(int) - wanted["other.safetensors"].images[0]).max() > 8
    assert_close(host.generate(guard=FULL).images[0], wanted["None"].images[0])  # the one that was chosen since


@pytest.mark.skipif(hosts.IS_FORGE, reason="its list of modules is refreshed by its page alone")
def test_a_vae_that_is_gone_or_another_one(chosen: hosts.Host) -> None:
    """It says so, the latents stay, and the VAE in use may decode them in its place."""
    host = chosen
    file = host.data / "models/VAE/passing.safetensors"
    shutil.copy(host.data / "models/VAE/other.safetensors", file)
    host.post("/sdapi/v1/refresh-vae")
    host.use_vae(file.name)
    host.generate(guard=TAESD)
    host.use_vae("None")
    weights.save_vae(file, weights.vae(9))
    os.utime(file, (1, 1))  # the host knows a file's hash by its time
    with pytest.raises(hosts.ApiError, match="is another file now"):
        host.decode_again()
    file.unlink()
    host.post("/sdapi/v1/refresh-vae")
    with pytest.raises(hosts.ApiError, match="is not there any more"):
        host.decode_again()
    answer = host.post(f"{host.kept()}/decode?vae_in_use=true")
    picture = np.asarray(hosts.decode(answer["images"][0]).convert("RGB"))
    assert_close(picture, host.generate(guard=FULL).images[0])


def test_scripts_of_others_that_act_after_the_decode_are_named(host: hosts.Host) -> None:
    host.generate(guard=TAESD)
    assert host.get("/vae-guard/latents")[0]["not_repeated"] == []
    marked = {"VAE Guard": {"args": TAESD}, "Probe's frame": {"args": [True]}}
    framed = host.generate(alwayson_scripts=marked)
    assert (framed.images[0][:4] == 255).all()
    answer = host.post(f"{host.kept()}/decode")
    assert answer["not_repeated"] == ["Probe's frame"]
    host.delete(host.kept())


# In the page


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[tuple[Page, hosts.Host]]:  # noqa: F811
    """Of a host that saves its pictures."""
    data = tmp_path / "data"
    hosts.prepare_data(data)
    running = hosts.start(data, samples_save=True, grid_format="png")  # Neo: JPEG
    opened = open_page(browser, running)
    for name, value in (("width", 128), ("height", 128), ("steps", 2)):
        number(opened, f"txt2img_{name}", value)
    yield opened, running
    opened.close()
    running.stop()


def saved(host: hosts.Host) -> list[Path]:
    return sorted(
        path
        for path in host.data.glob("output*/**/*.png")  # Forge Classic's is "output"
        if "grid" not in path.name and "grids" not in path.parent.as_posix()
    )


def button(page: Page, tab: str = "txt2img") -> Locator:
    return page.locator(f"#{tab}_vae_guard_again")


def generate(page: Page) -> None:
    page.locator("#txt2img_generate").click()
    expect(page.locator("#html_log_txt2img .time").last).to_be_visible(timeout=SECONDS)


def test_every_picture_in_the_gallery_is_put_right_at_its_place(page: tuple[Page, hosts.Host]) -> None:
    opened, host = page
    number(opened, "txt2img_batch_count", 2)  # latents of two batches
    opened.locator("#txt2img_seed input").first.fill("70")
    open_panel(opened)
    choose(opened, "#script_txt2img_vae_guard_decode_by", "TAESD")
    expect(button(opened)).to_be_hidden()
    generate(opened)
    first = saved(host)
    assert len(first) == 2
    opened.locator("#txt2img_vae_guard .label-wrap").click()  # the accordion is closed, and the button is there
    expect(button(opened)).to_be_visible()
    shoot(opened, "decode-again-1-approximate")
    shown = opened.locator("#txt2img_gallery .thumbnails img, #txt2img_gallery .grid-container img")
    before = shown.count()
    button(opened).click()
    expect(button(opened)).to_be_hidden(timeout=SECONDS)
    assert shown.count() == before
    expect(opened.locator("#txt2img_vae_guard .label-wrap").first).to_contain_text("in full")
    shoot(opened, "decode-again-2-exact")
    grid = opened.locator("#txt2img_gallery .thumbnail-item img").nth(-3).get_attribute("src")
    assert grid is not None
    with (
        Image.open(io.BytesIO(opened.request.get(grid).body())) as image,
        Image.open(saved(host)[-1]) as last,
    ):
        assert image.size == (256, 128)
        right_half = np.asarray(image.convert("RGB"))[:, 128:].astype(int)
        assert np.abs(right_half - np.asarray(last.convert("RGB"))).max() <= 1
    new = [path for path in saved(host) if path not in first]
    assert [path.name.split("-", 1)[1] for path in new] == [path.name.split("-", 1)[1] for path in first]
    for path, old, seed in zip(new, first, (70, 71), strict=True):
        with Image.open(path) as exact, Image.open(old) as approximate:
            text, before_text = exact.info["parameters"], approximate.info["parameters"]
            assert f"Seed: {seed}" in text
            assert (entry(text) or "").endswith("decoded again")
            assert without_ours(text) == without_ours(before_text)
            assert exact.mode == approximate.mode  # reForge has the infotext in an alpha channel, too
            assert np.abs(np.asarray(exact).astype(int) - np.asarray(approximate)).max() > 8
    for words in ("Seed: 70", "decoded again"):
        expect(opened.locator("#html_info_txt2img").last).to_contain_text(words)
    if hosts.IS_REAL:  # whose page asks for the infotext of the picture that is clicked
        for place in range(2):
            opened.locator("#txt2img_gallery .thumbnails button").nth(place - 2).click()
            expect(opened.locator("#html_info_txt2img").last).to_contain_text(f"Seed: {70 + place}")
            expect(opened.locator("#html_info_txt2img").last).to_contain_text("decoded again")


def test_a_picture_that_is_exact_has_no_button(page: tuple[Page, hosts.Host]) -> None:
    opened, host = page
    generate(opened)
    expect(button(opened)).to_be_hidden()
    host.generate(guard=TAESD)  # somebody else's, over the API
    generate(opened)
    expect(button(opened)).to_be_hidden()
