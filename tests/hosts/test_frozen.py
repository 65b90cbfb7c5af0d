"""A WebUI whose settings may not be changed says so, where a VAE is chosen in the tab."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts import in_double

pytestmark = pytest.mark.slow  # a process that imports gradio

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
    output = in_double.run("-c", PROGRAM, data=tmp_path).output
    said = "for the WebUI was started so that it cannot be changed (changing settings is disabled). Start it without"
    assert output.count(said) == 2, output
