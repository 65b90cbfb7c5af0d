"""Two folders with the extension: one serves, the other stays out of its way, and the user is told of both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.webui import host as hosts

SECOND = "vae-guard-main"  # loaded after the first

pytestmark = pytest.mark.slow


def reported(host: hosts.Host) -> list[str]:
    return [line for line in host.log().splitlines() if "is installed twice" in line]


def elements(host: hosts.Host) -> Counter[str]:
    """Our element ids in the page, and how often each is there."""
    ids = (str(component["props"].get("elem_id")) for component in host.get("/config")["components"])
    return Counter(name for name in ids if "vae_guard" in name or name.startswith("vg_"))


def test_the_second_does_nothing_and_that_is_reported(tmp_path: Path) -> None:
    hosts.prepare_data(tmp_path)
    hosts.install_extension(tmp_path / "extensions" / SECOND)
    host = hosts.start(tmp_path)
    try:
        for starts in (1, 2):  # Reload UI loads the first copy again, which is no other one
            assert len(reported(host)) == starts
            line = reported(host)[-1]
            assert line.index(hosts.EXTENSION) < line.index("is in use") < line.index(SECOND)
            once = elements(host)
            assert once["txt2img_vae_guard"] == 1
            assert set(once.values()) == {1}
            assert "VAE Guard: full" in host.generate().infotext
            if starts == 1:
                host.reload()
        host.post("/sdapi/v1/options", {"disabled_extensions": [hosts.EXTENSION]})
        host.reload()
        assert len(reported(host)) == 2
        assert elements(host) == once
        assert "VAE Guard: full" in host.generate().infotext
        assert "Traceback" not in host.log()
    finally:
        host.stop()
