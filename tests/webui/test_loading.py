"""Installing, reloading, disabling; what the extension puts into the host and takes out again."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.webui.host import IS_FORGE, IS_REAL, Host

RELOADS = 20
NAME = "vae guard"


def test_the_script_is_there_once_in_both_tabs(host: Host) -> None:
    infos = [info for info in host.get("/sdapi/v1/script-info") if info["name"] == NAME]
    assert [info["is_img2img"] for info in infos] == [False, True]
    assert all(info["is_alwayson"] for info in infos)
    assert [argument["label"] for argument in infos[0]["args"]][:2] == [
        "Fall back if memory is short",
        "Decode by",
    ]


def test_the_settings_are_there(host: Host) -> None:
    known = host.get("/probe/options")
    assert {
        "vae_guard_mode", "vae_guard_threshold", "vae_guard_fallback", "vae_guard_reserve", "vae_guard_encode",
        "vae_guard_keep",
    } <= set(known)  # fmt: skip


@pytest.mark.parametrize("times", [RELOADS])
def test_reloading_the_ui_leaves_one_patch_of_each(host: Host, times: int) -> None:
    before = host.get("/probe/state")
    assert "modules.processing.decode_first_stage" in before["patches"]
    for _ in range(times):
        host.reload()
    after = host.get("/probe/state")
    assert after["patches"] == before["patches"]
    assert after["depth"] == before["depth"]
    infos = host.get("/sdapi/v1/script-info")
    assert sum(info["name"] == NAME for info in infos) == 2
    axes = host.get("/probe/axes")
    assert len(axes) == len(set(axes)) if not IS_REAL else axes.count("[VAE Guard] Decode by") == 1


def test_disabling_takes_everything_out_and_enabling_brings_it_back(host: Host) -> None:
    before = host.get("/probe/state")
    host.enable(False)
    without = host.get("/probe/state")
    assert without["patches"] == []
    assert without["depth"] < before["depth"]
    assert all(info["name"] != NAME for info in host.get("/sdapi/v1/script-info"))
    assert "VAE Guard" not in host.generate().infotext
    host.enable(True)
    assert host.get("/probe/state")["patches"] == before["patches"]
    assert "VAE Guard: full" in host.generate().infotext


@pytest.mark.skipif(IS_FORGE, reason="gradio 4 has no such websocket")
def test_a_page_that_vanishes_in_the_middle_of_an_event_does_not_stop_a_reload(host: Host) -> None:
    dependencies = host.get("/config")["dependencies"]
    streams = [index for index, item in enumerate(dependencies) if _streams_on_load(item)]
    assert streams, "the tab's lists come while the page loads"
    for index in streams:
        with connect(host.url.replace("http", "ws") + "/queue/join") as page:
            _receive(page, "send_hash")
            page.send(json.dumps({"session_hash": "gone", "fn_index": index}))
            _receive(page, "send_data")
            page.socket.close()  # without a word, as a page that crashed
    time.sleep(1.5)
    host.reload()


def _streams_on_load(dependency: dict[str, Any]) -> bool:
    return dependency["trigger"] == "load" and dependency["types"]["generator"]


def _receive(page: ClientConnection, wanted: str) -> None:
    while json.loads(page.recv(timeout=240))["msg"] != wanted:
        pass
