"""Which host is running is told by what is there; each in a process of its own, whose ``modules`` are the double's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # that it offers all that is asked for is for mypy to see
    from vae_lib.hosts.a1111 import Host
    from vae_lib.webui.host import WebUI

    _offers_all: type[WebUI] = Host

ROOT = Path(__file__).resolve().parents[2]
DOUBLE = ROOT / "tests" / "host_double"

CHOOSE = """
import json, sys
sys.argv = ["webui.py"]
{before}
from vae_lib import hosts, webui
host = hosts.choose()
script = webui.start(host)
from modules import script_callbacks, patches
tabs = [entry[1] for c in script_callbacks.callback_map["callbacks_ui_tabs"] for entry in c.callback()]
patched = sum(len(found) for key, found in patches.originals.items() if "vae_guard" in str(key))
webui.stop()
left = sum(len(found) for key, found in patches.originals.items() if "vae_guard" in str(key))
print("\\n" + json.dumps([type(host).__module__, script is not None, tabs, patched, left]))
"""


def chosen(tmp_path: Path, before: str = "", *paths: Path) -> tuple[list[object], str]:
    """What was chosen: the host's module, whether it has a panel, its tabs, its patches, those left; the console."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (DOUBLE, ROOT, *paths))),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "COMMANDLINE_ARGS": f'--data-dir "{tmp_path}"',
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE.format(before=before)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *console, answer = done.stdout.splitlines()
    return json.loads(answer), "\n".join(console)


def test_a1111_is_known(tmp_path: Path) -> None:
    answer, console = chosen(tmp_path)
    module, panel, tabs, patched, left = answer
    assert (module, panel, tabs, left) == ("vae_lib.hosts.a1111", True, ["VAE"], 0)
    assert isinstance(patched, int)
    assert patched > 9
    assert "does not know" not in console


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("from modules import processing; del processing.decode_latent_batch", ""),
        ("import modules; sys.modules['modules.sd_vae'] = None", "sd_vae"),
    ],
    ids=["a function is gone", "a module is gone"],
)
def test_a_host_that_lacks_something_is_left_alone(tmp_path: Path, before: str, told: str) -> None:
    answer, console = chosen(tmp_path, before)
    assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
    assert console.count("VAE Guard does not know this WebUI: its own decode is used.") == 1
    assert told in console


def test_a_fork_that_keeps_its_vae_elsewhere_is_left_alone(tmp_path: Path) -> None:
    for name in ("modules_forge", "backend"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    answer, console = chosen(tmp_path, "", tmp_path)
    assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
    assert "does not know this WebUI" in console
