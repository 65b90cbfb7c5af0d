"""Every command in a console of Windows' code page, whose letters are few: it does its work, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import DATA, VAE

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "inspect": ("inspect", "日本.safetensors"),
    "plan": ("plan", "--vae", "日本.safetensors", "--width", "64", "--height", "64", "--free", "1GB"),
    "encode": ("encode", "絵.png", "--vae", "日本.safetensors", "-o", "潜.safetensors"),
    "decode": ("decode", "潜.safetensors", "--vae", "日本.safetensors", "-o", "出.png"),
    "demo": ("demo", "--image", "絵.png", "--output", "日"),
    "catalog": ("catalog",),
    "pull": ("pull", "acme/日本", "--folder", "."),
    "what is not there": ("inspect", "無.safetensors"),
    "help": ("--help",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    there = tmp_path_factory.mktemp("consoles") / "日本"
    there.mkdir()
    shutil.copy(VAE, there / "日本.safetensors")
    Image.open(DATA / "coffee.jpg").crop((0, 0, 32, 32)).save(there / "絵.png")
    return there


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)  # in this order: what one makes another reads
def test_few_letters(folder: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252:strict", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "vae_lib", *COMMANDS[name]],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
    )
    out, err = (text.decode("cp1252") for text in (done.stdout, done.stderr))
    failing = name in ("pull", "what is not there")
    assert done.returncode == int(failing), err
    assert "Traceback" not in err
    if failing:
        assert err.startswith("vae_lib: ")
        assert err.count("\n") == 1
    else:
        assert out
    if name in ("encode", "decode"):
        made = COMMANDS[name][-1]
        assert (folder / made).is_file()
        assert made[0].encode("ascii", "backslashreplace").decode() in out
