"""Running the program as a user does, in this process: arguments in, exit code, output and errors out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vae_lib.cli import main

DATA = Path(__file__).resolve().parents[2] / "vae_lib" / "data"
VAE = DATA / "vae_guard_tiny.safetensors"


@dataclass
class Run:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def go(*arguments: object) -> Run:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return go


@pytest.fixture
def decode(run: Callable[..., Run]) -> Callable[..., Run]:
    """``decode`` by the bundled VAE, on the CPU: what is decoded, and further options."""
    return lambda latents, *options: run("decode", latents, "--vae", VAE, "--device", "cpu", *options)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Latents of a small picture as a sampler leaves them, for the bundled VAE."""
    path = tmp_path / "latents.safetensors"
    save_file({"latents": torch.randn(1, 4, 9, 7)}, path)
    return path
