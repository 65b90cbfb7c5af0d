"""One file of each family and of each relative, made small in its published layout: the right family, or the question.

Keys of diffusion models are those by which diffusers and ComfyUI recognise them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import taehv
from tests.networks.small import FLUX2, SD_SHAPED, WAN, network, own_network, sd3_like, taesd, weights_of
from tests.networks.wan_layouts import diffusers_names, names_of_2d, own_names
from vae_lib.catalog import FAMILIES, Family
from vae_lib.checkpoints import identify, load_vae, save_safetensors
from vae_lib.errors import CheckpointError
from vae_lib.networks import AutoencoderKLConfig

Weights = dict[str, torch.Tensor]

LEVELS = {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}
UPSCALER = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1)
FLUX1, SMALL_WAN = sd3_like(**LEVELS), replace(WAN, z_channels=16)
QUANT = {"use_quant_conv": True, "use_post_quant_conv": True}
EDM = {"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}
MEASURED = {"scale_factor": torch.tensor(0.18215)}
BN = {"bn.running_mean": torch.zeros(128), "bn.running_var": torch.ones(128)}


def attends(block: str, width: int) -> Weights:
    return {f"model.diffusion_model.{block}.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, width)}


def beside(*names: str) -> Weights:
    return {f"model.diffusion_model.{name}": torch.zeros(1) for name in names}


def in_checkpoint(config: Any, others: Weights) -> Weights:
    return {f"first_stage_model.{key}": value for key, value in weights_of(network(config)).items()} | others


def in_vae(config: Any, others: Weights) -> Weights:
    """As ComfyUI's checkpoints of newer models have it."""
    return {f"vae.{key}": value for key, value in weights_of(network(config)).items()} | others


@dataclass(frozen=True)
class File:
    """``family`` is decided without doubt; where it is None, the candidates are ``among``, the likeliest first."""

    name: str
    weights: Weights
    family: str | None = None
    among: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


SD, SXL = ("SD1", "SD2", "SDXL"), {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
KL = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [32] * 4, "layers_per_block": 1}
DIFFUSERS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS = {
    "flux1-dev": ("double_blocks.0.img_attn.qkv.weight", "img_in.weight"),
    "Chroma1-HD": ("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.norms.0.scale"),
    "z_image_turbo": ("cap_embedder.1.weight", "noise_refiner.0.attention.k_norm.weight"),
    "lumina2": ("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),
    "hidream": ("double_stream_blocks.0.block.adaLN_modulation.1.bias",),
}
FILES = [
    File("v1-5-pruned", in_checkpoint(SD_SHAPED, attends("input_blocks.1", 768)), "SD1"),
    File("v2-1_768-ema", in_checkpoint(SD_SHAPED, attends("input_blocks.2", 1024)), "SD2"),
    File("base 1.0", in_checkpoint(SD_SHAPED, attends("input_blocks.4", 2048)), "SDXL"),
    File("auraflow", in_checkpoint(SD_SHAPED, beside("double_layers.0.attn.w1q.weight")), "SDXL"),
    File("x4-upscaler-ema", in_checkpoint(UPSCALER, attends("input_blocks.2", 1024)), "x4 upscaler"),
    File("its VAE", weights_of(network(UPSCALER)), "x4 upscaler"),
    File("playground-v2.5", in_checkpoint(SD_SHAPED, attends("input_blocks.4", 2048) | EDM), "Playground v2.5"),
    File("sd3_medium", in_checkpoint(FLUX1, beside("joint_blocks.0.x_block.attn.qkv.weight")), "SD3"),
    *(File(name, in_vae(FLUX1, beside(*keys)), "FLUX.1") for name, keys in TRANSFORMERS.items()),
    File("flux2-vae", weights_of(network(FLUX2)) | BN, "FLUX.2"),
    File("klein", in_vae(FLUX2, beside("double_blocks.0.x")) | {f"vae.{key}": BN[key] for key in BN}, "FLUX.2"),
    File("qwen_image_vae", own_names(weights_of(network(SMALL_WAN))), "Qwen-Image"),
    File("Qwen-Image", diffusers_names(weights_of(network(SMALL_WAN)), SMALL_WAN), "Qwen-Image"),
    File("Qwen2D_VAE", names_of_2d(weights_of(network(SMALL_WAN)), SMALL_WAN), "Qwen-Image"),
    File("trained", in_checkpoint(SD_SHAPED, MEASURED), "SD1"),
    File("sdxl.vae", weights_of(network(SD_SHAPED)), "SDXL", metadata=SXL),
    # only names speak
    File("myvae", weights_of(network(SD_SHAPED)), among=SD),
    File("sdxl_vae", weights_of(network(SD_SHAPED)), among=("SDXL", "SD1", "SD2")),
    *(
        File(name, weights_of(network(FLUX1)), among=("FLUX.1", "SD3"))
        for name in ("ae", "ae_bf16", "FluxVAE", "zimage_vae", "chroma_vae", "Lumina2_VAE", "hidream_vae")
    ),
    File("sd3_vae", weights_of(network(FLUX1)), among=("SD3", "FLUX.1")),
    File("other", weights_of(network(FLUX1)), among=("SD3", "FLUX.1")),
    # nothing that is known
    File("16 channels with quant convolutions", weights_of(network(replace(FLUX1, **QUANT)))),
    File("4 channels without", weights_of(network(replace(SD_SHAPED, **dict.fromkeys(QUANT, False))))),
    File("2 pixels a latent", weights_of(network(AutoencoderKLConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)))),
    File("16 pixels a latent", weights_of(network(AutoencoderKLConfig(ch=32, ch_mult=(1,) * 5, num_res_blocks=1)))),
    # contradictions
    File("mixed up", in_checkpoint(SD_SHAPED, attends("input_blocks.4", 2048)), among=("SDXL", "SD1"),
         metadata={"modelspec.architecture": "stable-diffusion-v1"}),
    File("trained again", in_checkpoint(SD_SHAPED, attends("input_blocks.4", 2048) | MEASURED),
         among=("SD1", "SDXL")),
    File("upscaler", weights_of(network(UPSCALER)), among=("x4 upscaler",), metadata={"scaling_factor": "0.18215"}),
    File("upscaler 2", weights_of(network(UPSCALER)), among=("x4 upscaler",), metadata=SXL),
    File("strange", in_checkpoint(UPSCALER, attends("input_blocks.4", 2048)), among=("x4 upscaler",)),
]  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_is_told_or_asked_about(file: File, tmp_path: Path) -> None:
    path = tmp_path / f"{file.name}.safetensors"
    save_safetensors(file.weights, path, dict(file.metadata))
    identity = identify(path, known=lambda sha256: None)
    assert identity.family is (FAMILIES[file.family] if file.family else None), identity.explanation
    if file.family is None:
        assert tuple(family.name for family in identity.candidates) == file.among
    space = load_vae(path).space
    assert (space is None) is (file.family is None)


def test_the_factor_of_the_upscaler(tmp_path: Path) -> None:
    save_safetensors(weights_of(network(UPSCALER)), tmp_path / "x.safetensors")
    identity = identify(tmp_path / "x.safetensors")
    assert (identity.scaling_factor, identity.shift_factor, identity.downscale) == (0.08333, 0.0, 4)


def test_the_numbers_of_playground_are_the_files_own(tmp_path: Path) -> None:
    """As diffusers has them: latents * std / 0.5 + mean."""
    mean, deviation = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])
    stored = in_checkpoint(SD_SHAPED, {"edm_mean": mean.view(1, 4, 1, 1), "edm_std": deviation.view(1, 4, 1, 1)})
    save_safetensors(stored, tmp_path / "x.safetensors")
    space = load_vae(tmp_path / "x.safetensors").space
    assert space is not None
    latents = torch.randn(1, 4, 2, 2)
    wanted = latents * deviation.view(1, 4, 1, 1) / 0.5 + mean.view(1, 4, 1, 1)
    torch.testing.assert_close(space.for_vae(latents), wanted)


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.zeros(4)])
def test_statistics_of_playground_that_cannot_be(wrong: torch.Tensor, tmp_path: Path) -> None:
    save_safetensors(in_checkpoint(SD_SHAPED, EDM | {"edm_std": wrong}), tmp_path / "x.safetensors")
    for function in (load_vae, identify):
        with pytest.raises(CheckpointError, match="is damaged: 'edm_std'"):
            function(tmp_path / "x.safetensors")


def test_a_factor_that_was_measured_in_training_is_used(tmp_path: Path) -> None:
    stored = in_checkpoint(SD_SHAPED, {"scale_factor": torch.tensor(0.25)})
    save_safetensors(stored, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert loaded.identity == identify(tmp_path / "x.safetensors")
    assert (loaded.identity.family_name, loaded.identity.scaling_factor) == ("its own", 0.25)
    for odd in (torch.tensor(0.0), torch.ones(4)):
        save_safetensors(stored | {"scale_factor": odd}, tmp_path / "x.safetensors")
        assert identify(tmp_path / "x.safetensors").family is None


PLAYGROUND = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (PLAYGROUND, "Playground v2.5"),
        (PLAYGROUND | {"scaling_factor": 0.13025}, None),
        (PLAYGROUND | {"latents_std": [1.0] * 4}, None),
        ({"scaling_factor": 0.13025}, "SDXL"),
        ({}, "SD1"),
        ({"scaling_factor": 0.13025, "block_out_channels": [128, 256, 512, 512]}, None),
        ({"scaling_factor": 0.13025, "block_out_channels": [32] * 3}, None),
        ({"scaling_factor": 0.13025, "layers_per_block": 2}, None),
        ({"scaling_factor": 0.13025, "use_quant_conv": False}, None),
        ({"scaling_factor": 0.13025, "in_channels": 4}, None),
    ],
)
def test_a_config_speaks_for_the_file_of_its_shapes(
    config: Mapping[str, Any], family: str | None, tmp_path: Path
) -> None:
    save_safetensors(weights_of(network(SD_SHAPED)), tmp_path / DIFFUSERS)
    (tmp_path / "config.json").write_text(json.dumps({**KL, **config}))
    assert identify(tmp_path / DIFFUSERS).family is (FAMILIES[family] if family else None)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model (1).safetensors", "diffusion_pytorch_model (12).safetensors"]
)
def test_a_second_download_is_not_told_by_the_config_of_the_first(name: str, tmp_path: Path) -> None:
    for file in (DIFFUSERS, name):
        save_safetensors(weights_of(network(SD_SHAPED)), tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps({**KL, "scaling_factor": 0.13025}))
    assert identify(tmp_path / DIFFUSERS).family is FAMILIES["SDXL"]
    identity = identify(tmp_path / name)
    assert (identity.family, identity.candidates) == (None, tuple(FAMILIES[family] for family in SD))
    (tmp_path / DIFFUSERS).unlink()
    assert identify(tmp_path / name).family is None  # alone, it is still the second


@pytest.mark.parametrize("name", [DIFFUSERS, "diffusion_pytorch_model.fp16.safetensors"])
def test_the_groups_of_the_norms_are_the_configs(name: str, tmp_path: Path) -> None:
    """Weights look the same for any number of groups, and the picture does not."""
    stored = weights_of(network(SD_SHAPED))
    save_safetensors(stored, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps({**KL, "scaling_factor": 0.13025, "norm_num_groups": 16}))
    loaded = load_vae(tmp_path / name)
    assert loaded.exact is not None
    latents = torch.randn(1, 4, 3, 2)
    wanted = own_network(replace(SD_SHAPED, norm_groups=16))
    wanted.load_state_dict(stored)
    torch.testing.assert_close(loaded.exact.decode(latents), wanted.decode(latents), atol=1e-5, rtol=0)
    assert not torch.allclose(wanted.decode(latents), network(SD_SHAPED).decode(latents), atol=1e-2)


def test_the_groups_of_another_vaes_config_are_not(tmp_path: Path) -> None:
    save_safetensors(weights_of(network(SD_SHAPED)), tmp_path / DIFFUSERS)
    (tmp_path / "config.json").write_text(json.dumps({**KL, "layers_per_block": 2, "norm_num_groups": 24}))
    loaded = load_vae(tmp_path / DIFFUSERS)
    assert loaded.exact is not None
    assert loaded.exact.config == SD_SHAPED
    assert "The config.json beside the file is another VAE's" in loaded.identity.explanation


@pytest.mark.parametrize(
    ("folders", "pipeline", "guess"),
    [
        ("Z-Image-Turbo/vae", None, "FLUX.1"),
        ("FLUX.1-dev/vae", None, "FLUX.1"),
        ("stable-diffusion-3.5-large/vae", None, "SD3"),
        ("model/vae", "ZImagePipeline", "FLUX.1"),
        ("model/vae", "StableDiffusion3Pipeline", "SD3"),
        ("model/vae", "FluxPipeline", "FLUX.1"),
        ("models/VAE", None, None),
        ("sd3/vae", "FluxPipeline", None),  # they contradict each other
    ],
)
def test_its_neighbours_are_asked(folders: str, pipeline: str | None, guess: str | None, tmp_path: Path) -> None:
    folder = tmp_path / folders
    folder.mkdir(parents=True)
    save_safetensors(weights_of(network(FLUX1)), folder / "x.safetensors")
    if pipeline is not None:
        (folder.parent / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    assert identify(folder / "x.safetensors").guess is (FAMILIES[guess] if guess else None)


def test_the_folder_of_all_taesds_says_nothing_of_one(tmp_path: Path) -> None:
    (tmp_path / "VAE-taesd").mkdir()
    save_safetensors(weights_of(taesd()), tmp_path / "VAE-taesd" / "mine.safetensors")
    assert identify(tmp_path / "VAE-taesd" / "mine.safetensors").guess is None


def test_the_taesd_of_a_video_model_is_only_told_by_its_name(tmp_path: Path) -> None:
    save_safetensors(taehv.weights(), tmp_path / "taew2_1.safetensors")
    assert identify(tmp_path / "taew2_1.safetensors").guess is FAMILIES["Qwen-Image"]


# Never a space that the file contradicts

SHAPES = {"SD": SD_SHAPED, "x4": UPSCALER, "16": FLUX1, "FLUX.2": FLUX2, "2 levels": replace(SD_SHAPED, ch_mult=(1, 1))}
WORDS = [
    *FAMILIES,
    "ae",
    "myvae",
    "sdxl_vae",
    "zimage",
    "vae-ft-mse",
    "taesd",
    DIFFUSERS[:-12],
    f"{DIFFUSERS[:-12]} (1)",
]


@st.composite
def surroundings(draw: st.DrawFn) -> tuple[str, str, dict[str, str], dict[str, Any] | None, Weights]:
    """A shape, a file's name, its metadata, a config.json beside it, and tensors beside the VAE."""
    shape, name = draw(st.sampled_from(sorted(SHAPES))), draw(st.sampled_from(WORDS))
    factors = st.sampled_from(["0.18215", "0.13025", "0.08333", "0.3611", "1.5305", "0.5"])
    metadata = draw(st.fixed_dictionaries({}, optional={
        "scaling_factor": factors, "shift_factor": st.sampled_from(["0", "0.1159"]),
        "modelspec.architecture": st.sampled_from(["stable-diffusion-xl-v1-base", "flux-1-dev", "stable-diffusion-v3"]),
    }))  # fmt: skip
    fields = st.fixed_dictionaries({"_class_name": st.just("AutoencoderKL")}, optional={
        "latent_channels": st.sampled_from([4, 16, 32]), "scaling_factor": factors.map(float),
        "shift_factor": st.sampled_from([0.0, 0.1159]), "norm_num_groups": st.sampled_from([0, 16, 32, "x"]),
        "block_out_channels": st.sampled_from([[32] * 4, [32] * 3, [128, 256], "x", None]),
        "latents_mean": st.sampled_from([None, [0.0] * 4]), "use_quant_conv": st.booleans(),
    })  # fmt: skip
    config = draw(st.one_of(st.none(), fields))
    others = draw(st.sampled_from([{}, attends("input_blocks.1", 768), attends("input_blocks.4", 2048), EDM,
                                   beside("double_blocks.0.x"), beside("joint_blocks.0.x"), BN]))  # fmt: skip
    return shape, name, metadata, config, others


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(surroundings())
def test_never_a_space_that_the_file_contradicts(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[str, str, dict[str, str], dict[str, Any] | None, Weights]
) -> None:
    shape, name, metadata, config, others = made
    folder = tmp_path_factory.mktemp("f")
    path, wanted = folder / f"{name}.safetensors", SHAPES[shape]
    prefix = "first_stage_model." if any(key.startswith("model.") for key in others) else ""
    stored = {prefix + key: value for key, value in weights_of(network(wanted)).items()}
    save_safetensors(stored | others, path, metadata)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    identity = identify(path, known=lambda sha256: None, hash_file=False)
    for family in filter(None, (identity.family, identity.guess, *identity.candidates)):
        assert family.latent_channels == wanted.latent_channels
        if family.name in FAMILIES:
            assert (family.downscale, family.quant_convs) == (wanted.downscale, wanted.use_quant_conv)
            assert family.packing is None or {"bn.running_mean", "bn.running_var"} <= (stored | others).keys()
    if identity.family is not None:
        _check_agrees(identity.family, metadata, others)


def _check_agrees(family: Family, metadata: Mapping[str, str], others: Weights) -> None:
    """What the file itself says of its latents is what was decided."""
    if "scaling_factor" in metadata:
        assert family.scaling_factor == float(metadata["scaling_factor"])
    widths = {tensor.shape[1] for name, tensor in others.items() if "attn2" in name}
    assert not widths or not family.context_widths or widths & set(family.context_widths)
    assert ("edm_mean" in others) <= (family.name == "Playground v2.5")
