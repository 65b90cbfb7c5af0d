"""NVIDIA's GPUs, and AMD's, which PyTorch for ROCm calls by the same name."""

from __future__ import annotations

import functools
import subprocess

import torch

from vae_lib.device.kind import Allocator, Kernels, Kind


class Cuda(Kind):
    def card(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)

    def driver(self) -> str:
        return _driver()


@functools.cache
def _driver() -> str:
    """The driver's version, as its own tool says; of ROCm the HIP version that PyTorch was built for."""
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return "driver unknown"
    lines = answer.stdout.split()
    return f"driver {lines[0]}" if answer.returncode == 0 and lines else "driver unknown"


KIND = Cuda(
    "cuda",
    # rest: a few small arrays that hold all of it, and cuDNN's workspace. left_over: a quarter of the largest array, up
    # to this, was enough for each of nine plans that were given less and less on a real card.
    allocator=Allocator(rest=8 << 20, unsplit=1 << 20, left_over=32 << 20),
    streams=True,
    kernels=Kernels(norms=True, attention=True, bias_apart=True),
    fuses_attention=True,
    tensor_cores=True,
)
