"""FLUX.2's VAE: told by the statistics beside it, never taken for another family's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE

from tests.networks.small import FLUX2
from vae_lib.checkpoints import FAMILIES, Meeting, OpenSpace, check_channels, identify, load_vae, save_safetensors
from vae_lib.decode import Ladder
from vae_lib.errors import CheckpointError, InputError
from vae_lib.networks import build
from vae_lib.planning import Route

Weights = dict[str, torch.Tensor]


def test_it_is_told_by_its_statistics(flux2_weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "ae.safetensors"
    save_safetensors(flux2_weights, path)
    loaded = load_vae(path)
    assert (loaded.identity.family, loaded.identity.certainty) == (FAMILIES["FLUX.2"], "tensors")
    assert loaded.identity == identify(path)
    assert loaded.space is not None
    latents = torch.randn(1, 128, 2, 3)
    unpacked = loaded.space.for_vae(latents)
    assert unpacked.shape == (1, 32, 4, 6)
    mean, variance = flux2_weights["bn.running_mean"], flux2_weights["bn.running_var"]
    first = latents[0, 5, 1, 2] * torch.sqrt(variance[5] + 1e-4) + mean[5]  # channel 1, upper right of its square
    torch.testing.assert_close(unpacked[0, 1, 2, 5], first)


def test_the_small_decoder_is_narrower_than_its_encoder(flux2_weights: Weights, tmp_path: Path) -> None:
    config = replace(FLUX2, ch=64, ch_mult=(1, 1, 1, 2), decoder_ch=32)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = dict(build(config).state_dict())
    weights |= {key: value for key, value in flux2_weights.items() if key.startswith("bn.")}
    save_safetensors(weights, tmp_path / "small.safetensors")
    loaded = load_vae(tmp_path / "small.safetensors")
    assert loaded.identity.family is FAMILIES["FLUX.2"]
    assert loaded.exact is not None
    assert loaded.exact.config == config
    latents = torch.randn(1, 32, 4, 3)
    made = Ladder(loaded.exact, order=(Route.TILED,)).decode(latents)
    torch.testing.assert_close(made.result, loaded.exact.decode(latents), atol=1e-4, rtol=1e-4)


def test_the_halves_of_two_vaes_are_refused(flux2_weights: Weights, tmp_path: Path) -> None:
    config = replace(FLUX2, has_encoder=False, ch=96, ch_mult=(1, 2, 3))
    weights = {key: value for key, value in flux2_weights.items() if not key.startswith("decoder.")}
    weights |= {key: value for key, value in build(config).state_dict().items() if key.startswith("decoder.")}
    save_safetensors(weights, tmp_path / "mixed.safetensors")
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_vae(tmp_path / "mixed.safetensors")


@pytest.mark.parametrize("layout", ["as its makers", "diffusers", "in a checkpoint"])
def test_its_layouts(layout: str, flux2_weights: Weights, tmp_path: Path) -> None:
    stored = dict(flux2_weights)
    if layout == "as its makers":
        stored = {
            key.replace("post_quant_conv.", "decoder.post_quant_conv.")
            if key.startswith("post_quant")
            else f"encoder.{key}"
            if key.startswith("quant")
            else key: value
            for key, value in stored.items()
        }
    elif layout == "in a checkpoint":
        stored = {f"first_stage_model.{key}": value for key, value in stored.items()}
    else:
        theirs = ReferenceVAE(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(32, 32, 32, 32),
            latent_channels=32,
        )
        stored = dict(theirs.state_dict()) | {k: v for k, v in stored.items() if k.startswith("bn.")}
    save_safetensors(stored, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert loaded.identity.family_name == "FLUX.2"
    assert loaded.space is not None
    assert loaded.space.patch == 2
    assert loaded.model.latent_channels == 32


def test_without_its_statistics_it_has_no_factors(flux2_weights: Weights, tmp_path: Path) -> None:
    bare = {key: value for key, value in flux2_weights.items() if not key.startswith("bn.")}
    save_safetensors(bare, tmp_path / "flux2-vae.safetensors", {"modelspec.architecture": "flux-2-dev"})
    loaded = load_vae(tmp_path / "flux2-vae.safetensors")
    assert loaded.space is None
    with pytest.raises(OpenSpace, match=r"looks like FLUX\.2's VAE, but the statistics .*'bn\.running_mean'.*missing"):
        Meeting(loaded).sampler_space()


def test_statistics_of_another_size_are_damage(flux2_weights: Weights, tmp_path: Path) -> None:
    for name, tensor in (("bn.running_mean", torch.zeros(64)), ("bn.running_var", torch.full((128,), -1.0))):
        save_safetensors(flux2_weights | {name: tensor}, tmp_path / "x.safetensors")
        for function in (identify, load_vae):
            with pytest.raises(CheckpointError, match=rf"is damaged: '{name}'"):
                function(tmp_path / "x.safetensors")


@pytest.mark.parametrize("extra", ["bn.running_mean", "latents_std", "per_channel.scale"])
def test_what_stands_beside_another_vae_leaves_its_family_open(
    extra: str, sd3_weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(sd3_weights | {extra: torch.zeros(64)}, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert (loaded.identity.family, loaded.identity.candidates) == (None, ())
    with pytest.raises(OpenSpace, match=rf"shape of a VAE of SD3 or FLUX\.1, but tensors beside it .*'{extra}'"):
        Meeting(loaded).sampler_space()


def test_whose_latents_they_are(flux2_weights: Weights, vae_file: Path, tmp_path: Path) -> None:
    save_safetensors(flux2_weights, tmp_path / "x.safetensors")
    flux2 = identify(tmp_path / "x.safetensors")
    check_channels(flux2, 128)
    check_channels(flux2, 32)
    with pytest.raises(
        InputError, match=r"have 16 channels and x\.safetensors takes 32 or 128; those of SD3, FLUX\.1 or "
    ):
        check_channels(flux2, 16)
    with pytest.raises(InputError, match=r"have 128 channels and plain\.safetensors takes 4; those of FLUX\.2 have"):
        check_channels(identify(vae_file), 128)
    with pytest.raises(InputError, match="no known family has so many"):
        check_channels(flux2, 5)
