"""Telling a VAE's family, and how surely."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE

from vae_lib.checkpoints import (
    FAMILIES,
    Meeting,
    OpenSpace,
    digest,
    evidence,
    identify,
    load_vae,
    save_safetensors,
    sha256_of,
)
from vae_lib.errors import CheckpointError

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Known:
    title: str
    family: str


def nothing_known(sha256: str) -> None:
    return None


def test_a_plain_file_is_described_and_left_ambiguous(vae_file: Path, weights: Weights) -> None:
    identity = identify(vae_file)
    assert identity.path == vae_file
    assert identity.layout == "ldm"
    assert identity.kind == "AutoencoderKL"
    assert not identity.is_taesd
    assert identity.latent_channels == 4
    assert identity.dtype == "float32"
    assert identity.parameters == sum(value.numel() for value in weights.values())
    assert identity.file_size == vae_file.stat().st_size
    assert identity.sha256 == hashlib.sha256(vae_file.read_bytes()).hexdigest()
    assert identity.short_hash == identity.sha256[:10]
    assert identity.family is None
    assert identity.family_name == "SD1, SD2 or SDXL"
    assert identity.certainty == "ambiguous"
    assert identity.explanation.startswith("The VAEs of SD1, SD2 and SDXL have the same shape")
    assert (identity.scaling_factor, identity.shift_factor) == (None, None)
    assert load_vae(vae_file).identity == identity


def test_sixteen_channels_are_ambiguous_too(sd3_weights: Weights, tmp_path: Path) -> None:
    save_safetensors(sd3_weights, tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors")
    assert (identity.family_name, identity.certainty) == ("SD3 or FLUX.1", "ambiguous")


def test_other_channels_belong_to_no_family(weights: Weights, tmp_path: Path) -> None:
    bare = {key: value for key, value in weights.items() if "quant_conv" not in key}
    bare["decoder.conv_in.weight"] = torch.zeros(32, 7, 3, 3)
    bare["encoder.conv_out.weight"] = torch.zeros(14, 32, 3, 3)
    bare["encoder.conv_out.bias"] = torch.zeros(14)
    save_safetensors(bare, tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors")
    assert (identity.latent_channels, identity.family_name) == (7, "unknown")
    assert "No known family of VAEs has 7 latent channels" in identity.explanation
    with pytest.raises(OpenSpace, match=r"x\.safetensors: No known family .* by hand"):
        Meeting(load_vae(tmp_path / "x.safetensors")).sampler_space()


def test_the_hash_is_believed_first(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors(weights, path, {"scaling_factor": "0.18215"})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    identity = identify(path, known={sha256: Known("sdxl-vae-fp16-fix", "SDXL")}.get)
    assert identity.family == FAMILIES["SDXL"]
    assert identity.certainty == "hash"
    assert "sdxl-vae-fp16-fix" in identity.explanation
    assert identity.scaling_factor == 0.13025
    # an entry for other channels, or of an unknown family, is a mistake in the catalog
    for wrong in ("SD3", "SD9"):
        identity = identify(path, known={sha256: Known("x", wrong)}.get)
        assert (identity.family, identity.certainty) == (FAMILIES["SD1"], "metadata")


def test_without_a_hash_the_catalog_is_not_asked(vae_file: Path) -> None:
    identity = identify(vae_file, hash_file=False, known=lambda sha256: pytest.fail("asked"))
    assert identity.sha256 is None
    assert identity.short_hash is None


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"scaling_factor": "0.13025"}, "SDXL"),
        ({"scaling_factor": "0.18215", "shift_factor": "0"}, "SD1"),
        ({"scaling_factor": "0.18215", "vae_guard.family": "SD2"}, "SD2"),
        ({"vae_guard.family": "SDXL"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v1"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v1/vae"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, "SDXL"),
        ({"modelspec.title": "My SDXL VAE"}, "SDXL"),
        ({"modelspec.title": "vae-ft-mse-840000"}, "SD1"),
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_v"}, "SD2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        # for 16 channels, or nonsense: not believed
        ({"modelspec.architecture": "stable-diffusion-v3-medium"}, None),
        ({"modelspec.architecture": "flux-1-dev"}, None),
        ({"modelspec.architecture": "unknown-model-12"}, None),
        ({"scaling_factor": "nan"}, None),
        ({"scaling_factor": "-1"}, None),
        ({"scaling_factor": "much"}, None),
        ({"scaling_factor": "1e999"}, None),
    ],
)
def test_metadata(metadata: dict[str, str], family: str | None, weights: Weights, tmp_path: Path) -> None:
    save_safetensors(weights, tmp_path / "x.safetensors", metadata)
    identity = identify(tmp_path / "x.safetensors", known=nothing_known)
    assert identity.family == (FAMILIES[family] if family else None)
    assert identity.certainty == ("metadata" if family else "ambiguous")


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"modelspec.architecture": "stable-diffusion-v3-medium"}, "SD3"),
        ({"modelspec.architecture": "stable-diffusion-v3.5-large"}, "SD3"),
        ({"modelspec.architecture": "flux-1-dev"}, "FLUX.1"),
        ({"modelspec.architecture": "Flux.1-schnell"}, "FLUX.1"),
        ({"ss_base_model_version": "sd3_m"}, "SD3"),
        ({"ss_base_model_version": "flux1"}, "FLUX.1"),
        ({"scaling_factor": "1.5305", "shift_factor": "0.0609"}, "SD3"),
        ({"scaling_factor": "0.3611", "shift_factor": "0.1159"}, "FLUX.1"),
        ({"modelspec.architecture": "flux-2-dev"}, None),
        ({"modelspec.architecture": "stable-diffusion-v1"}, None),
    ],
)
def test_metadata_of_sixteen_channels(
    metadata: dict[str, str], family: str | None, sd3_weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(sd3_weights, tmp_path / "x.safetensors", metadata)
    identity = identify(tmp_path / "x.safetensors", known=nothing_known)
    assert identity.family == (FAMILIES[family] if family else None)


def test_a_family_of_its_own(weights: Weights, tmp_path: Path) -> None:
    metadata = {"vae_guard.family": "bundled", "scaling_factor": "0.9", "shift_factor": "0.1"}
    save_safetensors(weights, tmp_path / "x.safetensors", metadata)
    identity = identify(tmp_path / "x.safetensors")
    assert identity.family is not None
    assert (identity.family_name, identity.certainty) == ("bundled", "metadata")
    assert (identity.scaling_factor, identity.shift_factor) == (0.9, 0.1)
    assert identity.family.taesd_stem is None


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "long " * 10])
def test_a_family_whose_name_cannot_be_shown(name: str, weights: Weights, tmp_path: Path) -> None:
    metadata = {"vae_guard.family": name, "scaling_factor": "0.9"}
    save_safetensors(weights, tmp_path / "x.safetensors", metadata)
    identity = identify(tmp_path / "x.safetensors")
    assert (identity.family_name, identity.scaling_factor) == ("its own", 0.9)


CONTEXT = "model.diffusion_model.{}.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("extra", "family"),
    [
        ({CONTEXT.format("input_blocks.1"): (320, 768)}, "SD1"),
        ({CONTEXT.format("input_blocks.1"): (320, 1024)}, "SD2"),
        ({CONTEXT.format("input_blocks.4"): (640, 2048)}, "SDXL"),
        ({CONTEXT.format("input_blocks.4"): (768, 1280)}, "SDXL"),
        ({"conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,)}, "SDXL"),
        ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (1, 1)}, None),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}, None),
    ],
)
def test_the_diffusion_model_beside_it_tells(
    extra: dict[str, tuple[int, ...]], family: str | None, weights: Weights, tmp_path: Path
) -> None:
    stored = {"first_stage_model." + key: value for key, value in weights.items()}
    stored |= {key: torch.zeros(shape) for key, shape in extra.items()}
    save_safetensors(stored, tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors", known=nothing_known)
    assert identity.layout == "ldm in a checkpoint"
    assert identity.family == (FAMILIES[family] if family else None)
    assert identity.certainty == ("checkpoint" if family else "ambiguous")


@pytest.mark.parametrize(("block", "family"), [("joint_blocks", "SD3"), ("double_blocks", "FLUX.1")])
def test_the_transformer_beside_it_tells(block: str, family: str, sd3_weights: Weights, tmp_path: Path) -> None:
    stored = {"first_stage_model." + key: value for key, value in sd3_weights.items()}
    stored[f"model.diffusion_model.{block}.0.x.weight"] = torch.zeros(1)
    save_safetensors(stored, tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors", known=nothing_known)
    assert (identity.family, identity.certainty) == (FAMILIES[family], "checkpoint")


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"scaling_factor": 0.13025, "latent_channels": 4}, "SDXL"),
        ({"latent_channels": 4}, "SD1"),  # diffusers' default
        ({"scaling_factor": 0.13025, "latent_channels": 16}, None),
        ({"scaling_factor": "broken", "latent_channels": 4}, None),
        ({"scaling_factor": 0.13025, "latent_channels": 4, "_class_name": "UNet2DConditionModel"}, None),
        ({"latent_channels": 4, "_class_name": "AutoencoderTiny", "scaling_factor": 1.0}, None),
        ([1, 2], None),
        ("{ not json", None),
    ],
)
def test_the_config_beside_it_tells(config: object, family: str | None, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_safetensors(weights, path)
    if isinstance(config, dict):
        config = {"_class_name": "AutoencoderKL", **config}
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    identity = identify(path, known=nothing_known)
    assert identity.family == (FAMILIES[family] if family else None)


def test_the_config_of_another_file_is_not_believed(weights: Weights, tmp_path: Path) -> None:
    save_safetensors(weights, tmp_path / "one-of-many.safetensors")
    config = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "latent_channels": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert identify(tmp_path / "one-of-many.safetensors", known=nothing_known).family is None


SDXL_CONFIG = json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "latent_channels": 4})


@pytest.fixture(scope="module")
def diffusers_weights() -> Weights:
    theirs = ReferenceVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
    )
    return {key: value.detach() for key, value in theirs.state_dict().items()}


def test_the_only_file_beside_a_config_is_its_own(diffusers_weights: Weights, tmp_path: Path) -> None:
    save_safetensors(diffusers_weights, tmp_path / "my-vae.safetensors")
    (tmp_path / "config.json").write_text(SDXL_CONFIG)
    assert identify(tmp_path / "my-vae.safetensors", known=nothing_known).family == FAMILIES["SDXL"]


def test_one_config_does_not_tell_the_family_of_all_files_in_its_folder(
    diffusers_weights: Weights, tmp_path: Path
) -> None:
    names = ("one.safetensors", "vae-ft-mse.safetensors", "diffusion_pytorch_model.safetensors")
    for name in names:
        save_safetensors(diffusers_weights, tmp_path / name)
    (tmp_path / "config.json").write_text(SDXL_CONFIG)
    found = [identify(tmp_path / name, known=nothing_known).family for name in names]
    assert found == [None, None, FAMILIES["SDXL"]]


def test_a_config_that_the_files_name_contradicts_is_not_believed_and_said(
    diffusers_weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(diffusers_weights, tmp_path / "vae-ft-mse.safetensors")
    (tmp_path / "config.json").write_text(SDXL_CONFIG)
    identity = identify(tmp_path / "vae-ft-mse.safetensors", known=nothing_known)
    assert (identity.family, identity.guess) == (None, None)
    assert identity.candidates == (FAMILIES["SDXL"], FAMILIES["SD1"])
    assert identity.explanation == "The config.json beside the file says SDXL. But its name says SD1."


def test_a_config_of_latents_normalised_by_channel_is_no_factor(diffusers_weights: Weights, tmp_path: Path) -> None:
    save_safetensors(diffusers_weights, tmp_path / "diffusion_pytorch_model.safetensors")
    config = json.loads(SDXL_CONFIG) | {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    identity = identify(tmp_path / "diffusion_pytorch_model.safetensors", known=nothing_known)
    assert (identity.family, identity.candidates) == (None, ())
    assert "mean and deviation for each channel" in identity.explanation


@pytest.mark.parametrize(
    ("name", "metadata", "family"),
    [
        ("sdxl_vae", {"scaling_factor": "0.18215"}, None),
        ("sdxl_vae", {"scaling_factor": "0.13025"}, "SDXL"),
        ("vae-ft-mse", {"vae_guard.family": "SD2"}, "SD2"),  # the same latents
    ],
)
def test_metadata_that_the_name_contradicts_is_a_question(
    name: str, metadata: dict[str, str], family: str | None, weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(weights, tmp_path / f"{name}.safetensors", metadata)
    identity = identify(tmp_path / f"{name}.safetensors", known=nothing_known)
    assert identity.family is (FAMILIES[family] if family else None)
    if family is None:
        assert identity.candidates == (FAMILIES["SD1"], FAMILIES["SDXL"])
        assert identity.explanation.endswith("(scaling_factor 0.18215). But its name says SDXL.")


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("sdxl_vae", "SDXL"),
        ("sdxl.vae.fp16", "SDXL"),
        ("vae-ft-mse-840000-ema-pruned", "SD1"),
        ("kl-f8-anime2", "SD1"),
        ("sd15-something", "SD1"),
        ("v2-1_768", None),
        ("sd_v2-1", "SD2"),
        ("sd3_vae", None),
        ("flux-ae", None),
        ("myvae", None),
    ],
)
def test_the_name_is_only_a_guess(name: str, guess: str | None, weights: Weights, tmp_path: Path) -> None:
    save_safetensors(weights, tmp_path / f"{name}.safetensors")
    identity = identify(tmp_path / f"{name}.safetensors", known=nothing_known)
    assert identity.family is None
    assert identity.guess == (FAMILIES[guess] if guess else None)


@pytest.mark.parametrize(
    ("name", "guess"),
    [("taesd_decoder", "SD1"), ("taesdxl_decoder", "SDXL"), ("taesd3_decoder", None), ("taef1", None)],
)
def test_a_taesd_takes_scaled_latents_whatever_its_family(
    name: str, guess: str | None, taesd_weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(taesd_weights, tmp_path / f"{name}.safetensors")
    identity = identify(tmp_path / f"{name}.safetensors", known=nothing_known)
    assert identity.is_taesd
    assert identity.guess == (FAMILIES[guess] if guess else None)
    assert (identity.scaling_factor, identity.shift_factor) == (1.0, 0.0)


def test_a_file_without_a_vae(tmp_path: Path) -> None:
    save_safetensors({"lora_unet.lora_up.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is a LoRA, not a VAE"):
        identify(tmp_path / "x.safetensors")


def test_the_digest_is_computed_once_per_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = sha256_of(path)
    assert first == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(digest.hashlib, "sha256", lambda: pytest.fail("computed again"))
        assert sha256_of(path) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 1))
    assert sha256_of(path) == hashlib.sha256(b"two").hexdigest()


def test_the_packages_own_catalog_is_asked_by_default(vae_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = sha256_of(vae_file)

    class Catalog:
        def by_sha256(self, wanted: str) -> Known | None:
            return Known("the one", "SD2") if wanted == sha256 else None

    monkeypatch.setattr(evidence, "load_catalog", Catalog)
    assert identify(vae_file).family == FAMILIES["SD2"]
