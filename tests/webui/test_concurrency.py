"""Requests at once: each gets its own picture by its own way, and nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.webui.host import Host
from tests.webui.test_pictures import Without, assert_same, entry

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
        return host.post(
            "/sdapi/v1/options", {"vae_guard_keep": 4 + number % 2, "live_previews_enable": True}
        )

    before = host.get("/probe/options")
    with ThreadPoolExecutor(len(WAYS) + 2) as pool:
        pictures = {way: pool.submit(generation, way) for way in WAYS}
        others = [
            pool.submit(repeated, switch),
            pool.submit(
                repeated, lambda number: [host.get("/vae-guard/latents"), host.get("/vae-guard/status")]
            ),
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
