"""A hub for each test, small real VAE files to put on it, and no waiting between attempts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.hub.hub_server import HubServer, running_hub
from tests.networks.small import network, taesd, weights_of
from vae_lib.hub import client
from vae_lib.networks import AutoencoderKLConfig


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings: no proxy, no waiting; tests/conftest.py sees to the rest."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The WebUI's models folder, with the two that we fill."""
    for name in ("VAE", "VAE-taesd"):
        (tmp_path / "models" / name).mkdir(parents=True)
    return tmp_path / "models"


@functools.cache
def vae_state(latent_channels: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    quant = latent_channels == 4
    config = AutoencoderKLConfig(
        ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=latent_channels, embed_dim=latent_channels,
        use_quant_conv=quant, use_post_quant_conv=quant,
    )  # fmt: skip
    return weights_of(network(config, seed=seed))


@functools.cache
def vae_bytes(latent_channels: int = 4, seed: int = 0) -> bytes:
    """A small AutoencoderKL in the ldm layout, about 1 MB."""
    return bytes(save(vae_state(latent_channels, seed)))


@functools.cache
def taesd_state(latent_channels: int = 4) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in weights_of(taesd(latent_channels)).items()}


@functools.cache
def taesd_bytes(latent_channels: int = 4) -> bytes:
    """TAESD as diffusers writes it: both halves in one file, the decoder's clamp not counted as a layer."""
    renamed = {}
    for name, tensor in taesd_state(latent_channels).items():
        half, index, rest = name.split(".", 2)
        renamed[f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}"] = tensor
    return bytes(save(renamed))
