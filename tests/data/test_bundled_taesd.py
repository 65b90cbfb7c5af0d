"""The tiny decoder that comes with the package, for the latents of the bundled VAE."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lib.checkpoints import LoadedVAE, load_vae, read_header
from vae_lib.networks import TAESD

pytestmark = pytest.mark.slow

DATA = Path(str(files("vae_lib") / "data"))
WEIGHTS = DATA / "vae_guard_taesd.safetensors"
# Measured: 24.03 dB from the photograph and 28.32 dB from the full decode (vae_lib/data/README.md). One dB of
# room for other kernels and other versions of PyTorch.
PHOTO_FLOOR = 23.0
FULL_FLOOR = 27.3


@pytest.fixture(scope="module")
def vae() -> LoadedVAE:
    return load_vae(DATA / "vae_guard_tiny.safetensors", dtype=torch.float32, kind="VAE")


@pytest.fixture(scope="module")
def taesd() -> LoadedVAE:
    return load_vae(WEIGHTS, dtype=torch.float32, kind="TAESD")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """(1, 3, 400, 600) in [-1, 1]."""
    pixels = np.asarray(Image.open(DATA / "coffee.jpg").convert("RGB"), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    difference = output.float().clamp(-1, 1) - target.clamp(-1, 1)
    return float(10 * torch.log10(4 / difference.square().mean()))


def test_is_a_small_decoder(taesd: LoadedVAE) -> None:
    assert WEIGHTS.stat().st_size <= 3_000_000
    assert isinstance(taesd.model, TAESD)
    assert taesd.model.decoder is not None
    assert taesd.model.encoder is None
    assert {tensor.dtype for tensor in read_header(WEIGHTS).tensors.values()} == {"float16"}


def test_is_for_the_latents_of_the_bundled_vae(taesd: LoadedVAE, vae: LoadedVAE) -> None:
    assert taesd.identity.kind == "TAESD decoder"
    assert taesd.identity.family == vae.identity.family
    assert taesd.identity.certainty == "metadata"


@torch.inference_mode()
def test_demo_photo_decodes_like_the_full_decoder(taesd: LoadedVAE, vae: LoadedVAE, photo: torch.Tensor) -> None:
    assert vae.identity.scaling_factor is not None
    latents = vae.model.encode(photo)
    picture = taesd.model.decode(latents * vae.identity.scaling_factor)
    assert psnr(picture, photo) > PHOTO_FLOOR
    assert psnr(picture, vae.model.decode(latents)) > FULL_FLOOR


@torch.inference_mode()
def test_latents_that_are_not_scaled_give_another_picture(
    taesd: LoadedVAE, vae: LoadedVAE, photo: torch.Tensor
) -> None:
    """So that the floors above tell the two conventions apart."""
    latents = vae.model.encode(photo)
    assert psnr(taesd.model.decode(latents), vae.model.decode(latents)) < FULL_FLOOR - 3
