"""On a real CUDA card: a device that is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.guard.fake_host import FakeHost
from tests.networks.small import SMALL, latents_for
from tests.real_gpu import GPU, needs_gpu
from vae_lib.guard import Guard

pytestmark = needs_gpu


class GPUHost(FakeHost):
    """With its VAE in half precision on the card."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        assert self.loaded is not None
        self.loaded.module.to(GPU, torch.float16)

    def device(self) -> torch.device:
        return GPU

    def dtype(self) -> torch.dtype:
        return torch.float16


def latents() -> torch.Tensor:
    return latents_for(SMALL, 16, 16).to(GPU, torch.float16)


def in_a_process_of_its_own(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "VAE_GUARD_CALIBRATE": "0"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LOST = """
import sys, torch
from pathlib import Path
from tests.guard.test_real_gpu import GPU, GPUHost, latents
from tests.guard.fake_host import decoded
from vae_lib.guard import Guard
host = GPUHost(Path(sys.argv[1]))
host.wrap(Guard(host))
host.generate(latents())
def decode(module, given):
    torch.zeros(4, device=GPU)[torch.full((1,), 9, device=GPU)]  # an assertion fails on the device
    return decoded(module, given)
try:
    host.generate(latents(), decode=decode)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_device_that_is_lost_is_told_and_the_latents_are_kept(tmp_path: Path) -> None:
    said = in_a_process_of_its_own(LOST, tmp_path)
    assert said.startswith("DeviceLost The device cuda")
    assert "does not answer any more" in said
    assert "device-side assert" in said
    assert "its latents are in" in said
    after = Guard(FakeHost(tmp_path))
    after.kept.restore()
    (kept,) = after.kept.items()
    assert torch.equal(kept.latents, latents().cpu())
