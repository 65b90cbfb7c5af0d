"""The weights and the photograph that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lib.checkpoints import LoadedVAE, load_vae, read_header
from vae_lib.networks import AutoencoderKL

pytestmark = pytest.mark.slow

DATA = Path(str(files("vae_lib") / "data"))
WEIGHTS = DATA / "vae_guard_tiny.safetensors"
PHOTO = DATA / "coffee.jpg"
# Measured: 25.21 dB (vae_lib/data/README.md). One dB of room for other kernels and other versions of PyTorch.
PSNR_FLOOR = 24.2


@pytest.fixture(scope="module")
def vae() -> LoadedVAE:
    return load_vae(WEIGHTS, dtype=torch.float32)


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """(1, 3, 400, 600) in [-1, 1]."""
    pixels = np.asarray(Image.open(PHOTO).convert("RGB"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (output.float().clamp(-1, 1) - target).square().mean()))


def test_is_small_and_complete(vae: LoadedVAE) -> None:
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert isinstance(vae.model, AutoencoderKL)
    assert vae.model.encoder is not None
    assert vae.model.decoder is not None
    assert (vae.model.downscale, vae.model.latent_channels) == (8, 4)
    assert {tensor.dtype for tensor in read_header(WEIGHTS).tensors.values()} == {"float16"}


def test_identity_comes_from_the_metadata(vae: LoadedVAE) -> None:
    """No other family's factors: SD1's 0.18215 would give a wrong contrast in every host."""
    metadata = read_header(WEIGHTS).metadata
    assert vae.identity.family_name == metadata["vae_guard.family"] == "VAE Guard tiny"
    assert vae.identity.scaling_factor == pytest.approx(float(metadata["scaling_factor"]))
    assert vae.identity.shift_factor == 0.0


@torch.inference_mode()
def test_scaled_latents_have_unit_spread(vae: LoadedVAE, photo: torch.Tensor) -> None:
    assert vae.identity.scaling_factor is not None
    scaled = vae.model.encode(photo) * vae.identity.scaling_factor
    assert 0.5 < float(scaled.std()) < 2.0


@torch.inference_mode()
def test_a_photograph_that_it_never_saw_is_recognisable(vae: LoadedVAE, photo: torch.Tensor) -> None:
    latents = vae.model.encode(photo)
    assert latents.shape == (1, 4, photo.shape[2] // 8, photo.shape[3] // 8)
    assert psnr(vae.model.decode(latents), photo) > PSNR_FLOOR


def convolves_on_cpu(dtype: torch.dtype) -> bool:
    """PyTorch up to 2.1 has no fp16 convolution for CPUs."""
    try:
        torch.conv2d(torch.zeros(1, 1, 3, 3, dtype=dtype), torch.zeros(1, 1, 3, 3, dtype=dtype))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_half_precision_agrees(dtype: torch.dtype, vae: LoadedVAE, photo: torch.Tensor) -> None:
    """A small crop, because many CPUs take minutes for a whole picture in fp16."""
    if not convolves_on_cpu(dtype):
        pytest.skip(f"this PyTorch cannot convolve in {dtype} on a CPU")
    crop = photo[..., 160:200, 240:280]
    half = load_vae(WEIGHTS, dtype=dtype).model
    latents = vae.model.encode(crop)
    exact, rounded = vae.model.decode(latents), half.decode(latents.to(dtype))
    assert psnr(rounded, exact.clamp(-1, 1)) > 30


@torch.inference_mode()
def test_activations_stay_far_from_the_end_of_fp16(vae: LoadedVAE, photo: torch.Tensor) -> None:
    """Unlike those of SDXL's VAE: the demo may run the same weights in every dtype."""
    largest: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, result: largest.append(float(result.abs().max())))
        for module in vae.model.modules()
    ]
    vae.model.decode(vae.model.encode(photo))
    for hook in hooks:
        hook.remove()
    assert len(largest) > 50
    assert max(largest) < 2000
