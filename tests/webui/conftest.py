from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.webui import host as hosts
from tests.webui.scenarios import SCENARIOS


@pytest.fixture(scope="session")
def started(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[hosts.Host, dict[str, hosts.Picture]]]:
    """A running WebUI, and the pictures that it made while the extension was disabled."""
    data: Path = tmp_path_factory.mktemp("webui")
    hosts.prepare_data(data)
    running = hosts.start(data, disabled=[hosts.EXTENSION])
    try:
        assert running.get("/probe/state")["patches"] == []
        pictures = {name: running.generate(**scenario) for name, scenario in SCENARIOS.items()}
        running.generate()  # the last scenario's checkpoint is another one
        running.enable(True)
        yield running, pictures
        assert complaints(running.log()) == []
    finally:
        running.stop()


def complaints(log: str) -> list[str]:
    """What the console must not show after all the tests: failures of the extension's own code."""
    ours = ("vae_guard", "vae_lib", hosts.EXTENSION)
    lines = log.splitlines()
    failed = [line for line in lines if line.startswith("*** Error") and any(name in line for name in ours)]
    return failed + [line for line in lines if "Please report this" in line and "made by the probe" not in line]


@pytest.fixture(scope="session")
def host(started: tuple[hosts.Host, dict[str, hosts.Picture]]) -> hosts.Host:
    """One WebUI for all tests: the double, or with WEBUI_DIR and WEBUI_PYTHON set the real one."""
    return started[0]


@pytest.fixture(scope="session")
def without(started: tuple[hosts.Host, dict[str, hosts.Picture]]) -> dict[str, hosts.Picture]:
    """What the host makes of each scenario without the extension."""
    return started[1]
