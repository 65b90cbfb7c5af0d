"""What the API's own routes answer, asked for in this process."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.exceptions import HTTPException

from tests.guard.fake_host import FakeHost
from tests.networks.small import SMALL, latents_for
from vae_lib.guard import Guard, Settings
from vae_lib.webui.api import Routes
from vae_lib.webui.downloads import Downloads
from vae_lib.webui.request_api import not_by_another_site
from vae_lib.webui.unfinished import UnfinishedPictures


def test_the_status_has_every_setting(tmp_path: Path) -> None:
    host: Any = FakeHost(tmp_path, {"vae_guard_disk": 12, "vae_guard_fallback": ["CPU", "Tiled"]})
    guard = Guard(host)
    settings = Routes(guard, host, Downloads(host, guard.notices)).status()["settings"]
    assert set(settings) == {field.name for field in fields(Settings)} - {"fixed"} | {"mode"}
    assert settings["mode"] == "automatic"
    assert settings["disk_mb"] == 12
    assert settings["fallback"] == ["cpu", "tiled"]


@pytest.fixture
def host(tmp_path: Path) -> Any:
    return FakeHost(tmp_path)


@pytest.fixture
def routes(host: Any) -> Routes:
    guard = Guard(host)
    host.wrap(guard)
    return Routes(guard, host, Downloads(host, guard.notices))


def break_vae(host: Any) -> Any:
    """Its weights become NaN, in every dtype; gives what undoes that."""
    weight = host.loaded.module.decoder.conv_out.weight
    whole = weight.clone()
    weight.fill_(float("nan"))
    return lambda: weight.copy_(whole)


def files(host: Any) -> list[Path]:
    return [path for path in host.data.glob("*/*.safetensors") if not path.name.startswith(".")]


def test_several_unfinished_pictures_outlast_the_kept_ones(host: Any, routes: Routes) -> None:
    mend = break_vae(host)
    for _ in range(6):  # more than are kept in RAM
        with pytest.raises(ArithmeticError):
            host.generate(latents_for(SMALL, 4, 4))
    with pytest.raises(HTTPException) as raised:
        routes.decode_latents(routes.latents()[0]["id"])
    assert raised.value.status_code == 422
    assert "even in fp32" in str(raised.value.detail)
    mend()
    host.generate(latents_for(SMALL, 4, 4))
    listed = [item for item in routes.latents() if item["file"]]
    assert len(listed) == len(files(host)) == 6
    assert {item["decoded_by"] for item in listed} == {None}
    for _ in listed:
        routes.decode_latents(next(item["id"] for item in routes.latents() if item["file"]))
    assert files(host) == []
    assert not any(item["file"] for item in routes.latents())


def test_latents_removed(host: Any, routes: Routes) -> None:
    mend = break_vae(host)
    with pytest.raises(ArithmeticError):
        host.generate(latents_for(SMALL, 4, 4))
    mend()
    (path,) = files(host)
    before = len(routes.latents())
    assert routes.remove_latents(routes.latents()[0]["id"]) == {"kept": before - 1}
    assert len(routes.latents()) == before - 1
    assert not path.exists()


def test_an_id_is_one_pictures_whatever_is_generated_in_between(host: Any, routes: Routes) -> None:
    latents = latents_for(SMALL, 4, 4)
    host.generate(latents)
    first = routes.latents()[0]["id"]
    host.generate(latents * 2)
    second = routes.latents()[0]["id"]
    routes.remove_latents(first)
    assert [item["id"] for item in routes.latents()] == [second]
    for answer in (routes.remove_latents, routes.decode_latents):
        for gone in (first, "0"):
            with pytest.raises(HTTPException) as raised:
                answer(gone)
            assert raised.value.status_code == 422
            assert "Use the 'id' that GET /vae-guard/latents lists" in str(raised.value.detail)
    assert len(routes.latents()) == 1


def test_a_file_with_odd_texts_does_not_end_the_list(host: Any, routes: Routes) -> None:
    """Answers are written in UTF-8, which has no halves of letters; nor has a file's name to be a text."""
    folder = host.data / "vae-guard-latents"
    folder.mkdir()
    odd = {"infotexts": '["a\\ud800"]', "model": "m\ud800", "created": "0001-01-01T00:00:00+23:59"}
    odd["afterwards"] = '[{}, {}, ["t\\udfff"]]'
    header = {
        "__metadata__": odd, "latents": {"dtype": "F32", "shape": [1, 4, 2, 2], "data_offsets": [0, 64]},
    }  # fmt: skip
    written = json.dumps(header).encode()
    content = len(written).to_bytes(8, "little") + written + bytes(64)
    Path(os.fsdecode(os.fsencode(folder) + b"/a\xff.safetensors")).write_bytes(content)
    routes._guard.kept.restore()
    (listed,) = routes.latents()
    assert json.dumps(listed, ensure_ascii=False).encode()
    assert listed["infotexts"] == ["a?"]
    assert "a\\udcff.safetensors" in listed["file"]
    (shown,) = UnfinishedPictures(routes._guard).listed()
    assert all(text.encode() is not None for text in shown.details.values())


def test_plans_are_answered_sparingly(host: Any, routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, outlook = [], routes._guard.outlook

    def counted(*question: Any) -> Any:
        asked.append(question)
        return outlook(*question)

    monkeypatch.setattr(routes._guard, "outlook", counted)
    first = routes.plan(256, 256)
    assert routes.plan(256, 256) == first
    assert len(asked) == 1
    host.values["vae_guard_reserve"] = 1024  # another question
    routes.plan(256, 256)
    assert len(asked) == 2
    routes._plans._left = -1.0  # after many
    with pytest.raises(HTTPException) as raised:
        routes.plan(512, 256)
    assert raised.value.status_code == 429
    assert int(raised.value.headers["Retry-After"]) >= 1
    assert "ask again in" in str(raised.value.detail)
    assert len(asked) == 2


def test_what_another_sites_page_takes_for_a_picture_is_refused() -> None:
    def asked(**headers: str) -> Any:
        return asyncio.run(not_by_another_site(SimpleNamespace(method="GET", headers=headers)))

    with pytest.raises(HTTPException) as raised:
        asked(**{"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"})
    assert raised.value.status_code == 403
    asked()
    asked(
        **{"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    )  # the WebUI says which may: --cors-allow-origins
