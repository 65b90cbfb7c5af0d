"""What the host waits for when it loads the extension's script."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.hosts import in_double

pytestmark = pytest.mark.slow  # a process that imports gradio

PROGRAM = """
import inspect, json, runpy, sys
script, sys.argv = sys.argv[1], ["webui.py"]
import PIL.ImageFilter, safetensors.torch  # as a real host has, beside gradio and PyTorch
from modules import scripts, script_callbacks
there = set(sys.modules)
seen, stack = [], inspect.stack

def looked_through(*args):
    frames = stack(*args)
    seen.append([frame.filename for frame in frames])
    return frames

inspect.stack = looked_through
runpy.run_path(script)
print("\\n" + json.dumps({"imported": sorted(set(sys.modules) - there), "stacks": seen}))
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = in_double.ROOT / "scripts" / "vae_guard.py"
    said = in_double.run("-c", PROGRAM, script, data=tmp_path_factory.mktemp("data"))
    answer: dict[str, Any] = said.answer()
    return answer


def test_only_our_own_modules_are_imported(start: dict[str, Any]) -> None:
    """Not the hub's client, not the API of a host that runs without: what is large is imported when it is needed."""
    others = {name.partition(".")[0] for name in start["imported"]} - sys.stdlib_module_names
    assert others <= {"vae_lib", "modules"}, others
    assert "modules.api.api" not in start["imported"]
    assert "vae_lib.webui.extension" in start["imported"]


def test_the_host_finds_who_registers_a_callback_without_a_long_search(start: dict[str, Any]) -> None:
    """It looks through the whole call stack, and through all modules for a file that is none, as the script's is."""
    assert len(start["stacks"]) == 7
    for files in start["stacks"]:
        assert files[1].endswith("script_callbacks.py")
        assert files[2].endswith("webui_family.py")
        assert not any(file.endswith("vae_guard.py") for file in files)
