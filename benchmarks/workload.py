"""What is decoded in the benchmarks: networks with random weights or the bundled VAE, and random latents."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_lib.checkpoints import load_vae
from vae_lib.networks import Architecture, AutoencoderKLConfig, Network, WanConfig, WanVAE, build, known

SHAPES: dict[str, Architecture] = {
    "sd": AutoencoderKLConfig(has_encoder=False, use_quant_conv=False),
    "sd3": AutoencoderKLConfig(
        has_encoder=False, z_channels=16, embed_dim=16, use_quant_conv=False, use_post_quant_conv=False
    ),
    "wan": WanConfig(has_encoder=False),
    "wan-2.2": replace(known.SHAPES["wan-2.2"], has_encoder=False),
}
BUNDLED = Path(__file__).parent.parent / "vae_lib" / "data" / "vae_guard_tiny.safetensors"


@dataclass(frozen=True)
class Job:
    """One decode: which network ("sd" for SD1, SD2 and SDXL, "sd3", "wan" for Qwen-Image and Wan 2.1, "wan-2.2",
    "bundled"), dtype, pixels along a side, batch."""

    shape: str
    dtype: str
    size: int
    batch: int

    def __str__(self) -> str:
        several = f" x{self.batch}" if self.batch > 1 else ""
        return f"{self.shape} {self.size}x{self.size} {self.dtype}{several}"

    def vae(self) -> Network:
        """The network in float32 on the CPU: the same weights in every process."""
        if self.shape == "bundled":
            model = load_vae(BUNDLED, dtype=torch.float32).model
            assert isinstance(model, Network)
            model.encoder = model.quant_conv = None
            return model
        torch.manual_seed(0)
        vae = build(SHAPES[self.shape]).eval().requires_grad_(False)
        if isinstance(vae, WanVAE):  # whose picture diffusers cuts off at -1 and 1
            assert vae.decoder is not None
            vae.decoder.conv_out.weight.mul_(0.5)
        return vae

    def latents(self, vae: Network) -> Tensor:
        """(B, C, size / downscale, size / downscale), float32: the same in every process."""
        generator = torch.Generator().manual_seed(1)
        side = self.size // vae.downscale
        return torch.randn(self.batch, vae.latent_channels, side, side, generator=generator)


@dataclass(frozen=True)
class Timing:
    """Seconds on the clock, and of this process's CPU time over all threads."""

    seconds: float
    cpu_seconds: float

    def undisturbed(self, device: torch.device) -> float:
        """On the CPU its time over PyTorch's threads, which other work stretches less than the time on the clock."""
        return self.cpu_seconds / torch.get_num_threads() if device.type == "cpu" else self.seconds


def timed(work: Callable[[], object], device: torch.device) -> Timing:
    """Do the work once, to its end on the device; what came before it has ended there too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Timing(time.perf_counter() - started, time.process_time() - cpu_started)


def difference(picture: Tensor, reference: Tensor) -> dict[str, float]:
    """How far a picture is from the reference, both in float32 on one device; their values span about 2."""
    error = picture - reference
    mean_square = torch.linalg.vector_norm(error).item() ** 2 / error.numel()
    return {
        "max_error": max(error.max().item(), -error.min().item()),
        "psnr": -10 * torch.log10(torch.tensor(mean_square / 4)).item(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name, "decoder": device.type, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
