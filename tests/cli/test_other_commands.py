"""inspect, plan, demo, catalog, help."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.networks.small import network, weights_of
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.ui.standalone import FolderBackend

from .conftest import DATA, VAE, Run

Runner = Callable[..., Run]


def test_inspect_says_what_the_bundled_vae_is(run: Runner) -> None:
    described = json.loads(run("inspect", VAE, "--json").out)
    assert described["kind"] == "AutoencoderKL"
    assert described["layout"] == "ldm"
    assert described["latent_channels"] == 4
    assert described["certainty"] == "metadata"
    assert len(described["sha256"]) == 64
    assert described["sha256"] in run("inspect", VAE).out


def test_inspect_refuses_what_is_no_vae(run: Runner, tmp_path: Path) -> None:
    page = tmp_path / "vae.safetensors"
    page.write_text("<!DOCTYPE html><html>Sign in</html>")
    done = run("inspect", page)
    assert done.code == 1
    assert done.err.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_file_names_that_are_no_text_can_be_told(run: Runner, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"a \xff\n\x1b[31m.safetensors")
    odd.write_bytes(VAE.read_bytes())
    told = run("inspect", odd).out
    assert "a \\udcff\\n\\x1b[31m.safetensors" in told.splitlines()[0]
    told.encode()
    odd.write_bytes(b"")
    assert run("inspect", odd).err == "vae_lib: a \\udcff\\n\\x1b[31m.safetensors is empty; download it again.\n"


@pytest.mark.slow
def test_plan_marks_the_chosen_route_and_explains_it(run: Runner) -> None:
    arguments = ("plan", "--vae", VAE, "--width", 1024, "--height", 768, "--free", "200MB", "--device", "cpu")
    plan = json.loads(run(*arguments, "--json").out)
    assert [row["route"] for row in plan["routes"]] == ["full", "tiled", "offload"]
    chosen = [row for row in plan["routes"] if row["chosen"]]
    assert [row["route"] for row in chosen] == [plan["chosen"]]
    assert chosen[0]["peak_bytes"] <= 200_000_000
    assert not plan["routes"][0]["fits"]
    table = run(*arguments).out
    assert table.startswith("decode 1024x768, fp32, cpu, 200 MB free\n")
    assert plan["reason"] in table
    assert f"> {plan['chosen']}" in table


@pytest.mark.slow
def test_plan_for_a_gpu_that_is_not_here(run: Runner) -> None:
    size = ("--width", 512, "--height", 512, "--free", "2GB", "--device", "cuda")
    plan = json.loads(run("plan", "--vae", VAE, *size, "--json").out)
    assert plan["dtype"] == "fp16"
    assert plan["chosen"] == "full"


@pytest.mark.slow
def test_where_nobody_knows_what_is_free_no_number_is_made_up(
    run: Runner, decode: Runner, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on MPS before PyTorch 2.3."""
    for module in ("commands", "work"):
        monkeypatch.setattr(f"vae_lib.cli.{module}.free_memory", lambda device: None)
    arguments = ("plan", "--vae", VAE, "--width", 1024, "--height", 768, "--device", "cpu")
    plan = json.loads(run(*arguments, "--json").out)
    assert plan["free_bytes"] is None
    assert {row["fits"] for row in plan["routes"]} == {None}
    assert plan["chosen"] == "full"
    assert "free memory" in plan["reason"]
    table = run(*arguments).out
    assert "free memory not known" in table
    assert table.count(" ? ") == len(plan["routes"])
    done = decode(latents, "-o", tmp_path / "x.png")
    assert done.code == 0, done.err
    assert "free memory" in done.out + done.err


@pytest.mark.slow
def test_plan_that_cannot_be_is_a_failure_with_its_table(run: Runner) -> None:
    done = run("plan", "--vae", VAE, "--width", 512, "--height", 512, "--free", "1KB", "--device", "cpu")
    assert done.code == 1
    assert "which takes at least" in done.err
    assert "offload" in done.out


@pytest.mark.parametrize("size", ["0", "-8", "eight"])
def test_sizes_that_no_picture_has(run: Runner, size: str) -> None:
    assert run("plan", "--vae", VAE, f"--width={size}", "--height", 64).code == 2


@pytest.mark.parametrize(
    ("levels", "width", "height", "nearest"),
    [
        (4, 100, 64, "8 pixels each; the nearest size is 96x64 or 104x64."),
        (5, 8, 8, "16 pixels each; the nearest size is 16x16."),  # it was a division by zero
        (5, 1032, 1024, "16 pixels each; the nearest size is 1024x1024 or 1040x1024."),  # it was planned as 1024
        (3, 1026, 1024, "4 pixels each; the nearest size is 1024x1024 or 1028x1024."),
    ],
)
def test_sizes_that_no_latents_of_a_vae_have(
    levels: int, width: int, height: int, nearest: str, run: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(weights_of(network(AutoencoderKLConfig(ch=32, ch_mult=(1,) * levels, num_res_blocks=1))), path)
    done = run("plan", "--vae", path, "--width", width, "--height", height, "--device", "cpu")
    said = f"vae_lib: x.safetensors makes no pictures of {width}x{height}, as its latents are {nearest}\n"
    assert (done.code, done.err) == (1, said)


@pytest.mark.parametrize(("levels", "side"), [(3, 60), (5, 64)])
def test_a_plan_for_other_pixels_a_latent(levels: int, side: int, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(weights_of(network(AutoencoderKLConfig(ch=32, ch_mult=(1,) * levels, num_res_blocks=1))), path)
    done = run("plan", "--vae", path, "--width", side, "--height", side, "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.startswith(f"decode {side}x{side}, ")


def test_a_file_is_listed_by_whichever_name_its_makers_gave_it(run: Runner, tmp_path: Path) -> None:
    shutil.copy(VAE, tmp_path / "ae.sft")
    (tmp_path / "vae.gguf").write_bytes(b"GGUF")
    assert [file.name for file in FolderBackend(tmp_path).files()][:2] == ["ae.sft", "vae.gguf"]
    assert run("inspect", tmp_path / "ae.sft").code == 0


@pytest.mark.slow
def test_demo_writes_every_picture_and_the_sheet(run: Runner, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    with Image.open(DATA / "coffee.jpg") as picture:
        picture.resize((96, 64)).save(photo)
    done = run("demo", "-o", tmp_path / "out", "--image", photo)
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"full.png", "tiled.png", "offload.png", "cpu.png", "sheet.png"} <= names
    rows = {
        line.split()[0]: line.split()
        for line in done.out.splitlines()
        if line.split()[0] in ("tiled", "offload", "cpu")
    }
    assert set(rows) == {"tiled", "offload", "cpu"}
    assert all(float(row[-1]) < 1e-4 for row in rows.values())


def test_catalog_lists_what_pull_knows(run: Runner) -> None:
    entries = json.loads(run("catalog", "--json").out)
    names = {entry["id"] for entry in entries}
    assert {"sdxl-vae", "taesd"} <= names
    assert all(name in run("catalog").out for name in names)


def test_help_teaches_every_command(run: Runner) -> None:
    done = run("--help")
    assert done.code == 0
    for command in ("decode", "encode", "inspect", "plan", "demo", "pull", "catalog", "ui"):
        assert command in done.out
        assert run(command, "--help").code == 0


def test_folders_that_may_not_be_looked_at(run: Runner, latents: Path, closed: Path) -> None:
    for arguments, said in (
        (["decode", latents, "--vae", VAE, "-o", closed / "x.png"], "cannot be written: file name too long"),
        (["inspect", closed / "x.safetensors"], "cannot be read: File name too long"),
        (["pull", "acme/x", "--folder", closed], "cannot be looked at (File name too long)"),
        (["ui", "--folder", closed], "cannot be looked at (File name too long)"),
    ):
        done = run(*arguments)
        assert (done.code, done.out) == (1, "")
        assert said in done.err
        assert done.err.count("\n") == 1
