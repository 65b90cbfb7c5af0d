"""Whether a VAE belongs to the loaded checkpoint, as *Use it* and *Always* say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.networks.small import FLUX2, SD_SHAPED, network, sd3_like, weights_of
from vae_lib.checkpoints import identify, save_safetensors
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.ui.backend import Checkpoint
from vae_lib.ui.files_section import mismatch

UPSCALER = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1)
FLUX1 = sd3_like(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)


@pytest.mark.parametrize(
    ("name", "config", "checkpoint", "said"),
    [
        ("myvae", SD_SHAPED, "SD1", ""),
        ("myvae", SD_SHAPED, "SDXL", ""),
        ("myvae", SD_SHAPED, None, ""),
        ("sdxl_vae", SD_SHAPED, "SDXL", ""),
        ("sdxl_vae", SD_SHAPED, "SD1", "This VAE is, by its name, of SDXL and the checkpoint model of SD1"),
        ("vae-ft-mse", SD_SHAPED, "SD2", ""),
        ("x", UPSCALER, "SD2", "This VAE is of x4 upscaler and the checkpoint model of SD2"),
        ("x", UPSCALER, "x4 upscaler", ""),
        ("x", FLUX1, "SD3", ""),
        ("ae", FLUX1, "SD3", "This VAE is, by its name, of FLUX.1 and the checkpoint model of SD3"),
        ("x", FLUX1, "Qwen-Image", "This VAE is of SD3 or FLUX.1 and the checkpoint model of Qwen-Image"),
        (
            "x",
            replace(FLUX1, use_quant_conv=True, use_post_quant_conv=True),
            "SD1",
            "This VAE is of an unknown family and",
        ),
        ("myvae", SD_SHAPED, "Playground v2.5", ""),  # SDXL's is right for it
        (
            "vae-ft-mse",
            SD_SHAPED,
            "Playground v2.5",
            "This VAE is, by its name, of SD1 and the checkpoint model of Play",
        ),
    ],
)
def test_a_vae_and_the_checkpoint(
    name: str, config: AutoencoderKLConfig, checkpoint: str | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_safetensors(weights_of(network(config)), path)
    found = mismatch(identify(path), Checkpoint("model", checkpoint, tmp_path))
    assert found.startswith(said)
    assert bool(found) is bool(said)


def test_the_vae_of_flux2_is_mugens_as_well(tmp_path: Path) -> None:
    statistics = {"bn.running_mean": torch.zeros(128), "bn.running_var": torch.ones(128)}
    save_safetensors(weights_of(network(FLUX2)) | statistics, tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors")
    assert mismatch(identity, Checkpoint("model", "Mugen", tmp_path)) == ""
    assert mismatch(identity, Checkpoint("model", "FLUX.1", tmp_path)) != ""
