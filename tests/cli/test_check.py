"""The command that tries this device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.networks.small import taesd, weights_of
from vae_lib.cli import check as command
from vae_lib.decode.check import Trial

from .conftest import VAE, Run

Runner = Callable[..., Run]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a test's, not of a user's."""
    limits = command.Limits
    monkeypatch.setattr(command, "Limits", lambda seconds, budget: limits(seconds, (32,), budget))


@pytest.mark.slow
def test_a_table_and_a_verdict(run: Runner) -> None:
    done = run("check", "--vae", VAE, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("VAE Guard ")
    for line, route in zip(lines[2:5], ("full in ", "tiled in ", "tiled + RAM in "), strict=True):
        assert line.split(maxsplit=1)[1].startswith(route)
    assert lines[-1].startswith("Every route gives the plain network's picture.")
    assert str(VAE.parent) not in done.out


@pytest.mark.slow
def test_another_networks_shape(run: Runner) -> None:
    done = run("check", "--like", "qwen-image", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "Every route gives the plain network's picture." in done.out


@pytest.mark.slow
def test_as_json(run: Runner) -> None:
    report = json.loads(run("check", "--vae", VAE, "--device", "cpu", "--encode", "--json").out)
    assert {finding["side"] for finding in report["findings"]} == {32}
    assert report["verdict"].startswith("Every route")
    assert report["left_out"] == []


@pytest.mark.slow
def test_a_wrong_route_is_an_exit_code(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Trial.ours
    monkeypatch.setattr(Trial, "ours", lambda self, given, tiling: ours(self, given, tiling) + 1)
    done = run("check", "--vae", VAE, "--device", "cpu")
    assert done.code == 1
    assert "the picture is not the plain network's" in done.out


def test_memory_that_is_not_there(run: Runner) -> None:
    done = run("check", "--vae", VAE, "--device", "cpu", "--free", "10kB")
    assert done.code == 1
    assert "Left out for lack of time or memory: 32x32." in done.out
    assert done.out.splitlines()[-1].startswith("Nothing could be checked")


def test_files_that_cannot_be_checked(run: Runner, tmp_path: Path) -> None:
    tiny = tmp_path / "taesd.safetensors"
    save_file(weights_of(taesd()), tiny)
    done = run("check", "--vae", tiny)
    assert done.code == 1
    assert done.err == (
        "vae_lib: taesd.safetensors is a TAESD, the tiny autoencoder, which has no routes to compare; "
        "choose a full VAE.\n"
    )
    done = run("check", "--vae", tmp_path / "missing.safetensors")
    assert (done.code, done.err.count("\n")) == (1, 1)
    if not torch.cuda.is_available():
        assert "has no usable cuda device" in run("check", "--device", "cuda").err
