"""Which host is running is told by what is there; each in a process of its own, whose ``modules`` are the double's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hosts import in_double

if TYPE_CHECKING:  # that it offers all that is asked for is for mypy to see
    from vae_lib.hosts.a1111 import Host
    from vae_lib.webui.host import WebUI

    _offers_all: type[WebUI] = Host


CHOOSE = """
import json, sys
sys.argv = ["webui.py"]
{before}
from vae_lib import hosts, webui
host = hosts.choose()
script = webui.start(host, hosts.instead_of)
from modules import script_callbacks, patches
tabs = [entry[1] for c in script_callbacks.callback_map["callbacks_ui_tabs"] for entry in c.callback()]
patched = sum(len(found) for key, found in patches.originals.items() if "vae_guard" in str(key))
webui.stop()
left = sum(len(found) for key, found in patches.originals.items() if "vae_guard" in str(key))
if script is None:
    callbacks = [c for found in script_callbacks.callback_map.values() for c in found]
    assert all(c.script.endswith("unknown.py") for c in callbacks), callbacks  # the tab that says so
print("\\n" + json.dumps([type(host).__module__, script is not None, tabs, patched, left]))
"""

BROKEN = """
class Broken:
    def find_spec(name, *_):
        return 1 / 0 if name == "modules.sd_vae" else None

sys.meta_path.insert(0, Broken)
"""


def chosen(tmp_path: Path, before: str = "", *paths: Path) -> tuple[list[object], str]:
    """What was chosen: the host's module, whether it has a panel, its tabs, its patches, those left; the console."""
    said = in_double.run("-c", CHOOSE.format(before=before), data=tmp_path, last=paths)
    assert "Traceback" not in said.errors
    *console, _ = said.output.splitlines()
    return said.answer(), "\n".join(console)


@pytest.mark.slow
def test_a1111_is_known(tmp_path: Path) -> None:
    answer, console = chosen(tmp_path)
    module, panel, tabs, patched, left = answer
    assert (module, panel, tabs, left) == ("vae_lib.hosts.a1111", True, ["VAE"], 0)
    assert isinstance(patched, int)
    assert patched > 9
    assert "does not know" not in console


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "told"),
    [
        (
            "from modules import processing; del processing.decode_latent_batch",
            "The problem: decode_latent_batch.",
        ),
        ("import modules; sys.modules['modules.sd_vae'] = None", "sd_vae"),
        (BROKEN, "ZeroDivisionError: "),
    ],
    ids=["a function is gone", "a module is gone", "a module is broken"],
)
def test_a_host_that_lacks_something_is_left_alone(tmp_path: Path, before: str, told: str) -> None:
    answer, console = chosen(tmp_path, before)
    assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
    assert console.count("VAE Guard does not know this WebUI: its own decode is used.") == 1
    assert told in console


@pytest.mark.slow
def test_a_fork_that_keeps_its_vae_elsewhere_is_left_alone(tmp_path: Path) -> None:
    for name in ("modules_forge", "backend"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    answer, console = chosen(tmp_path, "", tmp_path)
    assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
    assert "does not know this WebUI" in console


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "problem"),
    [
        ("from modules import shared; del shared.cmd_opts.vae_dir", "'vae_dir'"),
        ("from modules import shared; shared.opts.data_labels = None", "TypeError: "),
        (
            "from modules import shared; del shared.opts.data['auto_vae_precision_bfloat16'];"
            " del shared.opts.data_labels['auto_vae_precision_bfloat16']",
            "bfloat16",
        ),
        ("from modules import scripts; scripts.Script = None", "TypeError: "),
        (
            "from modules import script_callbacks; del script_callbacks.on_script_unloaded",
            "on_script_unloaded",
        ),
        ("from modules import sd_vae; del sd_vae.get_loaded_vae_hash", "get_loaded_vae_hash"),
    ],
    ids=["folders", "settings", "repairs", "the panel", "a callback", "a patch"],
)
def test_a_host_that_fails_later_is_left_alone(tmp_path: Path, before: str, problem: str) -> None:
    """What differs in a fork is met by the first questions, or by the start itself."""
    answer, console = chosen(tmp_path, before)
    _, panel, tabs, patched, left = answer
    assert (panel, tabs, patched, left) == (False, ["VAE"], 0, 0)
    (line,) = (line for line in console.splitlines() if line.startswith("VAE Guard"))
    assert "does not support this version of AUTOMATIC1111's WebUI yet: its own decode is used." in line
    assert problem in line


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["", "modules_forge.main_entry"])
def test_forge_neo_is_told_from_forge(tmp_path: Path, lacks: str) -> None:
    """It has all of Forge's modules; a version of it that lacks something is not taken for Forge."""
    flavours = Path(__file__).with_name("flavours")
    before = "from modules import shared; shared.cmd_opts.vae_dirs = []"
    if lacks:
        before += "\n" + BROKEN.replace("modules.sd_vae", lacks)
    answer, console = chosen(tmp_path, before, *(flavours / name for name in ("neo", "forge", "shared")))
    if not lacks:
        assert answer[0] == "vae_lib.hosts.neo"
        assert answer[1:3] == [True, ["VAE"]]
        assert answer[4] == 0
    else:
        assert answer == ["vae_lib.hosts.unknown", False, ["VAE"], 0, 0]
        assert "VAE Guard does not support this version of Forge Neo yet: its own decode is used." in console
