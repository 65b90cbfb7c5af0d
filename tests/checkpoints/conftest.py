"""Small VAEs with random weights, shared by the tests of this package and never changed by them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.networks.small import FLUX2, SD_SHAPED, network, sd3_like, taesd, weights_of
from vae_lib.checkpoints import save_safetensors

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def weights() -> Weights:
    """An AutoencoderKL of 4 latent channels, in the ldm layout."""
    return weights_of(network(SD_SHAPED))


@pytest.fixture(scope="session")
def sd3_weights() -> Weights:
    """An AutoencoderKL of 16 latent channels without quant convs, in the ldm layout."""
    return weights_of(network(sd3_like(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)))


@pytest.fixture(scope="session")
def flux2_weights() -> Weights:
    """An AutoencoderKL of 32 latent channels with the statistics of its packed latents, in the ldm layout."""
    statistics = {"bn.running_mean": torch.randn(128), "bn.running_var": torch.rand(128) + 0.5}
    return weights_of(network(FLUX2)) | statistics | {"bn.num_batches_tracked": torch.tensor(9)}


@pytest.fixture(scope="session")
def taesd_weights() -> Weights:
    """A TAESD of 4 channels, both halves, as encoder.N and decoder.N."""
    return weights_of(taesd())


@pytest.fixture(scope="session")
def vae_file(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "plain.safetensors"
    save_safetensors(weights, path)
    return path
