"""A WebUI whose settings may not be changed says so, where a VAE is chosen in the tab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a process that imports gradio

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
sys.argv = ["webui.py", "--freeze-settings"]
from modules import sd_vae, shared
from vae_lib.hosts.a1111 import Host
from vae_lib.errors import InputError
shared.opts.data["sd_vae"] = "None"
sd_vae.vae_dict["other.safetensors"] = "/models/other.safetensors"
host = Host()
for choose in (lambda: host.select_vae("other.safetensors"), host.select_automatically):
    try:
        choose()
    except InputError as error:
        print(error)
"""


def test_choosing_a_vae_says_that_settings_are_frozen(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT / "tests" / "host_double"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "HOST_DOUBLE_DATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = "for the WebUI was started so that it cannot be changed (changing settings is disabled). Start it without"
    assert done.stdout.count(said) == 2, done.stdout
