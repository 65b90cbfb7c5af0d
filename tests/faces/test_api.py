"""What the API's own routes answer, asked for in this process."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fastapi.exceptions import HTTPException

from tests.guard.fake_host import FakeHost
from tests.networks.small import SMALL, latents_for
from vae_lib.guard import Guard, Settings
from vae_lib.webui.api import Routes
from vae_lib.webui.downloads import Downloads


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
