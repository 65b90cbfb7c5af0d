"""A config.json of another version, and another extension that owns one of our settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.webui import host as hosts
from tests.webui.test_pictures import assert_same, entry

OTHER_EXTENSION = """
from modules import script_callbacks, shared

def add():
    info = shared.OptionInfo("theirs", "Not a threshold", section=("theirs", "Theirs"))
    shared.opts.add_option("vae_guard_threshold", info)

script_callbacks.on_ui_settings(add)
"""
SETTINGS = {"vae_guard_mode": 5, "vae_guard_fallback": "Tiled", "vae_guard_keep": -1, "vae_guard_of_old": [1]}


@pytest.fixture(scope="module")
def host_with_bad_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    data = tmp_path_factory.mktemp("bad-settings")
    hosts.prepare_data(data)
    script = data / "extensions" / "an older one" / "scripts" / "theirs.py"
    script.parent.mkdir(parents=True)
    script.write_text(OTHER_EXTENSION)
    running = hosts.start(data, **SETTINGS)
    yield running
    running.stop()


def test_settings_that_cannot_be_used_are_told_and_generations_go_on(
    host_with_bad_settings: hosts.Host, without: dict[str, hosts.Picture]
) -> None:
    host = host_with_bad_settings
    picture = host.generate()
    assert_same(picture, without["txt2img"])
    assert entry(picture.infotext) == "full"
    log = host.log()
    for key in ("vae_guard_mode", "vae_guard_fallback", "vae_guard_keep"):
        assert f"{key} is " in log
    assert log.count("Choose others in Settings > VAE Guard") == 1
    assert "owns the setting 'vae_guard_threshold'" in log
    assert host.get("/probe/options")["vae_guard_threshold"] == "theirs"
    assert "*** Error" not in log
    assert "Please report this" not in log
