"""Requests at once: each gets its own picture by its own way, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hub.hub_server import HubServer
from tests.webui import test_downloads as downloads
from tests.webui.host import Host
from tests.webui.test_browser import browser, generate, open_page  # noqa: F401
from tests.webui.test_downloads import hub  # noqa: F401
from tests.webui.test_pictures import Without, assert_same, entry

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser

WAYS = {"Full": "full", "Tiled": "tiled", "CPU": "on the cpu", "Tiled + RAM": "tiled + ram"}


def test_settings_of_requests_at_once_do_not_mix(host: Host, without: Without) -> None:
    start = threading.Barrier(len(WAYS) + 2)

    def generation(way: str) -> Any:
        start.wait(60)
        return [host.generate(guard=[False, way, 0]) for _ in range(3)]

    def repeated(call: Callable[[int], Any]) -> None:
        start.wait(60)
        for number in range(6):
            call(number)

    def switch(number: int) -> Any:
        return host.post("/sdapi/v1/options", {"vae_guard_keep": 4 + number % 2, "live_previews_enable": True})

    before = host.get("/probe/options")
    with ThreadPoolExecutor(len(WAYS) + 2) as pool:
        pictures = {way: pool.submit(generation, way) for way in WAYS}
        others = [
            pool.submit(repeated, switch),
            pool.submit(repeated, lambda number: [host.get("/vae-guard/latents"), host.get("/vae-guard/status")]),
        ]
        for other in others:
            other.result(300)
        results = {way: future.result(300) for way, future in pictures.items()}
    host.post("/sdapi/v1/options", {key: before[key] for key in ("vae_guard_keep", "live_previews_enable")})
    for way, made in results.items():
        for picture in made:
            assert_same(picture, without["txt2img"])
            assert entry(picture.infotext, "VAE Guard decode by") == way
            assert (entry(picture.infotext) or "").lower().startswith(WAYS[way])


@pytest.fixture
def with_hub(tmp_path: Path, hub: HubServer) -> Iterator[Host]:  # noqa: F811
    running = downloads.start(tmp_path, hub, live_previews_enable=True, show_progress_every_n_steps=1)
    yield running
    running.stop()


def test_page_api_download_and_vae_switch_at_once(with_hub: Host, browser: Browser) -> None:  # noqa: F811
    """The host serialises generations and the loading of a VAE: each picture is of one VAE or the other."""
    host, vaes = with_hub, ("other.safetensors", "None")
    wanted = {}
    for name in vaes:
        host.use_vae(name)
        wanted[name] = host.generate().images[0].astype(int)
    assert np.abs(wanted[vaes[0]] - wanted[vaes[1]]).max() > 50
    page = open_page(browser, host)

    def requests() -> list[Any]:
        return [host.generate().images[0] for _ in range(6)]

    def switches() -> None:
        for number in range(8):
            host.use_vae(vaes[number % 2])
            host.get("/vae-guard/plan?width=1024&height=1024")

    with ThreadPoolExecutor(4) as pool:
        job = downloads.post(host, reference="acme/good")
        pictures, others = [pool.submit(requests) for _ in range(2)], pool.submit(switches)
        generate(page)
        others.result(300)
        for future in pictures:
            for image in future.result(300):
                distance = {name: np.abs(image - picture).max() for name, picture in wanted.items()}
                assert min(distance.values()) <= 1, distance
        assert downloads.over(host, job)["state"] == "done"
    page.close()
    assert "good.safetensors" in host.vaes()
    assert host.vae_in_use() is None
    assert "VAE Guard: could not" not in host.log()
