"""What the API's own routes answer, asked for in this process."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.guard.fake_host import FakeHost
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
