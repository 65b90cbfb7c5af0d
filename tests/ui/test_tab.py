"""The VAE tab by itself, in a real browser, on a folder of small VAEs."""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.gradio_page import html, open_tab, remove_image, uploaded
from tests.hub.conftest import vae_bytes
from tests.hub.hub_server import HubServer, running_hub
from tests.networks.small import network, taesd, weights_of
from vae_lib.networks import AutoencoderKLConfig

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
BUNDLED = Path(__file__).parents[2] / "vae_lib" / "data" / "vae_guard_tiny.safetensors"

if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no Chromium here; the browser tests run in CI", allow_module_level=True)

pytest.importorskip("gradio")
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright  # noqa: E402

# A row of the table of files, by the file's name.
ROW = "#vg_files tbody tr"


@dataclass
class Site:
    """The app under test: where it is, its folder, and the hub that it downloads from."""

    address: str
    folder: Path
    hub: HubServer


def diffusers_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the keys of diffusers' ``AutoencoderKL``."""
    levels = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.down."))

    def up(match: re.Match[str]) -> str:
        return f"decoder.up_blocks.{levels - 1 - int(match[1])}."

    renamed = {}
    for key, tensor in state.items():
        name = re.sub(r"encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", key)
        name = re.sub(r"decoder\.up\.(\d+)\.", up, name)
        for ours, theirs in (
            (".mid.block_1.", ".mid_block.resnets.0."),
            (".mid.block_2.", ".mid_block.resnets.1."),
            (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
            (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
            (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
            (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
            (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
            (".block.", ".resnets."),
            (".nin_shortcut.", ".conv_shortcut."),
            (".downsample.", ".downsamplers.0."),
            (".upsample.", ".upsamplers.0."),
            (".norm_out.", ".conv_norm_out."),
        ):
            name = name.replace(ours, theirs)
        is_linear = ".attentions.0.to_" in name and name.endswith("weight")
        renamed[name] = (tensor.flatten(1) if is_linear else tensor).contiguous()
    return renamed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vaes")
    state = weights_of(network(AutoencoderKLConfig(ch=32, num_res_blocks=1)))
    sdxl = {"modelspec.architecture": "stable-diffusion-xl-v1-base"}
    save_file(state, folder / "plain.safetensors", metadata=sdxl)
    save_file(diffusers_state(state), folder / "from_diffusers.safetensors")
    halves = {key: tensor.half() for key, tensor in weights_of(taesd()).items()}
    save_file(halves, folder / "taesd.safetensors")
    decoder_only = {key: t for key, t in state.items() if not key.startswith(("encoder.", "quant_conv."))}
    save_file(decoder_only, folder / "decoder_only.safetensors")
    (folder / "page.safetensors").write_text("<!DOCTYPE html><html><body>Log in</body></html>")
    (folder / "<img src=x onerror=alert(1)>.safetensors").write_bytes(b"")
    shutil.copy(BUNDLED, folder)
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Site]:
    import huggingface_hub.constants

    from vae_lib.ui import standalone
    from vae_lib.ui.app import launch

    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        manager = functools.partial(standalone.DownloadManager, endpoint=hub.endpoint)
        patch.setattr(standalone, "DownloadManager", manager)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        patch.delenv("HF_TOKEN", raising=False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
        hub.add("acme/good", {"good.safetensors": vae_bytes(seed=1)})
        hub.add("acme/two", {"vae_a.safetensors": vae_bytes(seed=2), "vae_b.safetensors": vae_bytes(seed=3)})
        hub.add("acme/pickle", {"old.ckpt": b"not looked at without consent"})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        app = launch(folder, port=port, open_browser=False, block=False)
        yield Site(f"http://127.0.0.1:{port}/", folder, hub)
        app.server.force_exit = True  # not waiting for browsers that keep their connections
        app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "CI must have Chromium: .ci/run installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    expect.set_options(timeout=120_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(site.address)
    expect(page.locator(ROW, has_text="plain.safetensors")).to_be_visible()
    yield page
    page.close()
    assert not errors


def open_section(page: Page, name: str) -> None:
    open_tab(page, name, "#vg_tabs")


def choose_vaes(page: Page, *names: str) -> None:
    """Instead of the one to begin with."""
    chosen = page.locator("#vg_vaes .token")
    expect(chosen).to_have_count(1)
    chosen.locator(".token-remove").click()
    expect(chosen).to_have_count(0)
    field = page.locator("#vg_vaes input")
    for name in names:
        field.click()
        field.fill(name)
        page.locator("#vg_vaes ul.options li", has_text=re.compile(rf"^\W*{re.escape(name)}\s*$")).click()
    field.press("Escape")


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def test_files_are_listed_with_what_they_are(page: Page) -> None:
    plain = page.locator(ROW, has_text="plain.safetensors")
    expect(plain).to_contain_text("SDXL")
    expect(plain.locator(".vg-mono")).to_have_text(re.compile("^[0-9a-f]{10}$"))  # hashed in the background
    expect(page.locator(ROW, has_text="from_diffusers")).to_contain_text("diffusers")
    expect(page.locator(ROW, has_text="from_diffusers")).to_contain_text("SD1 or SDXL")
    expect(html(page, "#vg_files")).not_to_contain_text("not certain")
    expect(page.locator(ROW, has_text="taesd.safetensors").locator(".vg-chip")).to_have_text("TAESD")
    for name in ("page.safetensors", "<img src=x"):
        expect(page.locator(ROW, has_text=name).locator("td").last).to_have_text("cannot be used")
    expect(page.locator(ROW)).to_have_count(8)  # the bundled file's copy is another file


def test_details_and_using_one_without_the_webui(page: Page) -> None:
    expect(page.locator("#vg_use")).to_be_disabled()
    page.get_by_role("button", name="plain.safetensors", exact=True).click()
    details = html(page, "#vg_details")
    expect(details).to_contain_text("SDXL, by its metadata")
    expect(details).to_contain_text("4 channels, scaling factor 0.13025")
    expect(details).to_contain_text(re.compile("[0-9a-f]{64}"))
    expect(page.locator("tr.vg-chosen")).to_contain_text("plain.safetensors")
    page.locator("#vg_use").click()
    expect(html(page, "#vg_said")).to_contain_text("Stable Diffusion WebUI")
    page.get_by_role("button", name="page.safetensors", exact=True).click()
    expect(details).to_contain_text("is a web page, not weights")
    expect(details).to_contain_text("download it again")
    expect(html(page, "#vg_said")).to_have_text("")  # it was about the other file
    expect(page.locator("#vg_use")).to_be_disabled()
    page.get_by_role("button", name="<img src=x").click()
    expect(details).to_contain_text("is empty")


def test_refresh_shows_a_new_file_and_drops_a_deleted_one(page: Page, site: Site) -> None:
    new = site.folder / "sub" / "new.safetensors"
    new.parent.mkdir()
    new.write_bytes(vae_bytes(seed=9))
    page.locator("#vg_refresh").click()
    expect(page.locator(ROW, has_text="sub/new.safetensors")).to_be_visible()
    shutil.rmtree(new.parent)
    page.locator("#vg_refresh").click()
    expect(page.locator(ROW, has_text="sub/new.safetensors")).to_have_count(0)


def upload(page: Page, element: str, path: Path) -> None:
    """By its bytes: under some locales Chromium cannot open a path that is not plain ASCII."""
    content = {"name": path.name, "mimeType": "application/octet-stream", "buffer": path.read_bytes()}
    if path.suffix == ".png":
        content["mimeType"] = "image/png"
    page.locator(f"{element} input[type=file]").set_input_files(content)


def test_compare_a_picture(page: Page, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((70, 64)).convert("RGB").save(tmp_path / "picture.png")
    open_section(page, "Compare")
    clear = remove_image(page, "#vg_picture")
    clear.click()
    upload(page, "#vg_picture", tmp_path / "picture.png")
    expect(page.locator("#vg_picture img")).to_be_visible()
    choose_vaes(page, "vae_guard_tiny.safetensors", "taesd.safetensors", "decoder_only.safetensors")
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("3 of 5 decoded; the table says why")
    results = page.locator("#vg_results tbody tr")
    expect(results).to_have_count(5)
    tiny = results.filter(has_text="vae_guard_tiny")
    expect(tiny).to_have_count(2)
    expect(tiny.first).to_contain_text("dB")
    expect(tiny.first).to_contain_text(re.compile(r"\d (MB|kB)"))
    expect(results.filter(has_text="decoder_only").first).to_contain_text("holds only a decoder")
    expect(page.locator("#vg_gallery")).to_contain_text("Original")
    expect(html(page, "#vg_difference_said")).to_contain_text("Original and")
    expect(page.locator("#vg_difference img")).to_be_visible()
    # two routes of one VAE give the same picture, and the difference view says so
    page.locator("#vg_one input").click()
    page.locator("#vg_one ul.options li", has_text="vae_guard_tiny.safetensors, Automatic").click()
    page.locator("#vg_other input").click()
    page.locator("#vg_other ul.options li", has_text="vae_guard_tiny.safetensors, Tiled").click()
    said = html(page, "#vg_difference_said")
    expect(said).to_contain_text("Automatic and")
    expect(said).to_contain_text(re.compile(r"identical|PSNR (\d{3}|[89]\d)"))


def test_compare_latents_and_what_can_go_wrong(page: Page, tmp_path: Path) -> None:
    open_section(page, "Compare")
    page.get_by_label("A latents file").check()
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("Upload a latents file first")
    save_file({"latents": torch.randn(1, 4, 8, 8)}, tmp_path / "four.safetensors")
    upload(page, "#vg_latents", tmp_path / "four.safetensors")
    expect(uploaded(page, "#vg_latents", "four.safetensors")).to_be_visible()
    choose_vaes(page)
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("Choose at least one VAE")
    open_section(page, "Files")
    open_section(page, "Compare")  # begins with one again
    choose_vaes(page, "from_diffusers.safetensors", "plain.safetensors")
    page.get_by_label("Tiled", exact=True).uncheck()
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("1 of 2 decoded")
    results = page.locator("#vg_results tbody tr")
    expect(results.filter(has_text="from_diffusers")).to_contain_text("choose it in 'Whose latents': SD1, SD2 or SDXL")
    page.locator("#vg_whose input").click()
    page.locator("#vg_whose ul.options li", has_text="SDXL").click()
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("2 decoded")
    expect(results.filter(has_text="plain")).to_contain_text("Identical")
    page.get_by_label("Last latents").check()
    page.locator("#vg_compare").click()
    expect(html(page, "#vg_status")).to_contain_text("no latents of an earlier picture")


def _hex(swatch: Locator) -> str:
    colour = swatch.evaluate("element => getComputedStyle(element).backgroundColor")
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour))


def test_a_name_that_cannot_be_is_refused_at_once(page: Page) -> None:
    open_section(page, "Downloads")
    page.locator("#vg_reference textarea, #vg_reference input").fill("nothing like it")
    page.locator("#vg_download").click()
    expect(html(page, "#vg_download_said")).to_contain_text("is not in the catalog")
    expect(page.locator("#vg_job_0")).to_be_hidden()


def test_controls_have_hints_without_the_webui_too(page: Page) -> None:
    for control in ("vg_use", "vg_width", "vg_route_boxes", "vg_download", "vg_check"):
        expect(page.locator(f"#{control}")).to_have_attribute("title", re.compile(r"\w+ \w+"))


def test_memory_of_a_size(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_lib.ui.backend.free_memory", lambda device: 2_000_000_000)
    open_section(page, "Memory")
    expect(html(page, "#vg_bar")).to_contain_text("needed")
    expect(page.locator("#vg_plot svg.vg-desk polyline")).to_have_count(4)
    expect(html(page, "#vg_reach")).to_contain_text("With 2.0 GB free, you can decode up to")
    for name in ("Would take now", "Needs at least"):
        expect(page.locator("#vg_routes th", has_text=name)).to_be_visible()
    for colour in page.locator("#vg_routes .vg-swatch").all():
        assert page.locator(f"#vg_plot .vg-desk [stroke='{_hex(colour)}']").count() == 1
    expect(html(page, "#vg_plot")).to_contain_text("usable now: 2.0 GB")
    routes = page.locator("#vg_routes tbody tr")
    expect(routes).to_have_count(4)
    expect(routes.filter(has_text="Tiled + RAM")).to_contain_text(re.compile(r"\d+\s×\s\d+"))
    page.locator("#vg_width input").fill("2048")
    page.locator("#vg_height input").fill("2048")
    expect(routes.first).to_contain_text("Does not fit")
    expect(html(page, "#vg_plan")).to_contain_text("full needs 4.5 GB")
    page.locator("#vg_width input").fill("3")
    expect(html(page, "#vg_plan")).to_contain_text("The width must be")


def test_memory_of_a_video(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_lib.ui.backend.free_memory", lambda device: 2_000_000_000)
    open_section(page, "Memory")
    said = html(page, "#vg_plan")
    frames = page.locator("#vg_frames input")
    frames.fill("5")
    expect(said).to_contain_text("Only Wan's VAEs are for videos; choose one of them, or 1 frame.")
    page.locator("#vg_memory_vae input").click()
    page.locator("#vg_memory_vae ul.options li", has_text="Wan 2.1").click()
    expect(said).to_contain_text(re.compile(r"needs .* takes about"))
    expect(page.locator("#vg_routes tbody tr")).to_have_count(3)  # no TAESD
    expect(page.locator("#vg_plot svg")).to_have_count(0)
    frames.fill("6")
    expect(said).to_contain_text("makes no videos of 6 frames")
    frames.fill("0")
    expect(said).to_contain_text("The number of frames must be from 1 to 1001")


def test_download_from_a_repository(page: Page, site: Site) -> None:
    open_section(page, "Downloads")
    page.get_by_role("button", name="sdxl-vae-fp16-fix").click()
    expect(page.locator("#vg_reference textarea, #vg_reference input")).to_have_value("sdxl-vae-fp16-fix")
    expect(html(page, "#vg_catalog")).to_contain_text("MIT")

    reference = page.locator("#vg_reference textarea, #vg_reference input")
    newest = page.locator("#vg_job_0")
    site.hub.fault("CDN GET .*good", rate=60_000)
    reference.fill("acme/good")
    page.locator("#vg_download").click()
    expect(newest).to_contain_text("/s, ")  # speed and time left
    newest.get_by_role("button", name="Cancel").click()
    expect(newest).to_contain_text("cancelled")
    expect(html(page, "#vg_parts")).to_contain_text("acme/good")
    page.locator("#vg_download").click()
    expect(newest).to_contain_text("good.safetensors is downloaded and verified")
    newest.get_by_role("button", name="Use it now").click()
    expect(html(page, "#vg_download_said")).to_contain_text("Stable Diffusion WebUI")

    reference.fill("acme/two")
    page.locator("#vg_download").click()
    expect(newest).to_contain_text("several files")
    page.locator("#vg_choice input").click()
    page.locator("#vg_choice ul.options li", has_text="vae_b").click()
    expect(reference).to_have_value("acme/two/vae_b.safetensors")
    page.locator("#vg_download").click()
    expect(newest).to_contain_text("vae_b.safetensors is downloaded and verified")

    reference.fill("acme/pickle")
    page.locator("#vg_download").click()
    expect(newest).to_contain_text("is a pickle")
    expect(newest).to_contain_text("Allow pickles")

    open_section(page, "Files")
    expect(page.locator(ROW, has_text="good.safetensors")).to_be_visible()
    expect(page.locator(ROW, has_text="vae_b.safetensors")).to_be_visible()


def test_the_device_can_be_checked(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lib.decode import check
    from vae_lib.ui import check_section

    small = AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
    monkeypatch.setattr(check_section, "sample_network", lambda half: network(small))
    monkeypatch.setattr(check, "CPU_SIZES", (32,))
    open_section(page, "Memory")
    said, report = html(page, "#vg_check_said"), page.locator("#vg_check_report textarea")
    expect(said).to_contain_text("in at most a minute")
    expect(report).not_to_be_visible()
    page.locator("#vg_check").click()
    expect(said.locator("tbody tr")).to_have_count(3)
    expect(page.locator("#vg_check_stop")).to_be_visible()
    expect(said).to_contain_text("Every route gives the plain network's picture.")
    expect(report).to_have_value(re.compile("^VAE Guard "))


@pytest.mark.parametrize(("width", "theme"), [(390, "light"), (390, "dark"), (760, "light"), (1280, "dark")])
def test_every_section_fits_the_screen(browser: Browser, site: Site, width: int, theme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(f"{site.address}?__theme={theme}")
    expect(page.locator(ROW, has_text="plain.safetensors")).to_be_visible(timeout=120_000)
    for section in ("Files", "Compare", "Memory", "Downloads"):
        open_section(page, section)
        assert overflow(page) <= 0, section
        cut = page.eval_on_selector_all(
            ".vg-scroll", "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
        )
        assert cut == [], section
    is_dark = page.evaluate("document.body.classList.contains('dark')")
    assert is_dark == (theme == "dark")
    page.close()
