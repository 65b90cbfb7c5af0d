"""The VAE of Wan and Qwen-Image in its three layouts: read as one network, refused where something is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.networks.small import FP16, FP32, QWEN21, WAN, WAN22, network, weights_of
from tests.networks.wan_layouts import diffusers_names, names_of_2d, own_names
from vae_lib.checkpoints import FAMILIES, convert_to_ldm, identify, load_latents, load_vae
from vae_lib.errors import CheckpointError, InputError
from vae_lib.networks import WanConfig, WanVAE

Weights = dict[str, Tensor]
CONFIG = replace(WAN, z_channels=16)
LAYOUTS: dict[str, Callable[[Weights, WanConfig], Weights]] = {
    "wan": lambda weights, config: own_names(weights),
    "wan (diffusers)": diffusers_names,
    "wan (2-D)": names_of_2d,
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def stored(layout: str, config: WanConfig = CONFIG) -> Weights:
    return LAYOUTS[layout](weights_of(network(config)), config)


def written(weights: Weights, folder: Path, name: str = "vae.safetensors") -> Path:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, folder / name)
    return folder / name


@layouts
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_every_layout_is_the_same_network(layout: str, prefix: str, tmp_path: Path) -> None:
    path = written({prefix + key: tensor for key, tensor in stored(layout).items()}, tmp_path)
    loaded = load_vae(path)
    assert isinstance(loaded.model, WanVAE)
    assert loaded.model.config == CONFIG
    wanted = network(CONFIG).state_dict()
    found = loaded.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in found.values())
    identity = loaded.identity
    assert (identity.layout, identity.kind, identity.is_taesd) == (layout, "WanVAE", False)
    assert (identity.family, identity.certainty) == (FAMILIES["Qwen-Image"], "tensors")
    assert identity == identify(path)


@layouts
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_one_half(layout: str, half: str, tmp_path: Path) -> None:
    config = replace(CONFIG, has_encoder=half == "encoder", has_decoder=half == "decoder")
    loaded = load_vae(written(stored(layout, config), tmp_path))
    assert isinstance(loaded.model, WanVAE)
    assert loaded.model.config == config
    assert f"It holds only {'an encoder' if half == 'encoder' else 'a decoder'}" in loaded.identity.explanation


@layouts
def test_other_numbers_of_blocks(layout: str, tmp_path: Path) -> None:
    config = WanConfig((4, 6, 8), 3, 16)
    assert load_vae(written(stored(layout, config), tmp_path)).model.config == config  # type: ignore[union-attr]


def test_the_space_is_a_mean_and_a_deviation_of_each_channel(tmp_path: Path) -> None:
    space = load_vae(written(stored("wan"), tmp_path)).space
    assert space is not None
    latents = torch.randn(1, 16, 2, 2)
    torch.testing.assert_close(space.for_vae(latents)[0, 7], latents[0, 7] * 2.0743 + 1.5508)


def test_half_precision_and_pickles(tmp_path: Path) -> None:
    halves = {key: tensor.half() for key, tensor in stored("wan").items()}
    assert identify(written(halves, tmp_path)).dtype == "float16"
    torch.save(stored("wan"), tmp_path / "Wan2.1_VAE.pth")
    loaded = load_vae(tmp_path / "Wan2.1_VAE.pth", dtype=FP16)
    assert all(parameter.dtype == FP16 for parameter in loaded.model.parameters())


@layouts
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("missing", "incomplete VAE"),
        ("misshapen", "has shape"),
        ("more", "unknown kind: it has 'decoder.extra.weight'"),
        ("NaN", "NaN or infinite"),
        ("integers", "stores its weights as int8"),
    ],
)
def test_damaged_files(layout: str, change: str, problem: str, tmp_path: Path) -> None:
    weights = stored(layout)
    key = next(key for key in weights if key.startswith("decoder.") and key.endswith("conv2.weight")) if (
        layout != "wan"
    ) else "decoder.upsamples.4.residual.6.weight"  # fmt: skip
    match change:
        case "missing":
            del weights[key]
        case "misshapen":
            weights[key] = torch.zeros(*weights[key].shape[:-1], 5)
        case "more":
            weights["decoder.extra.weight"] = torch.zeros(3)
        case "NaN":
            weights[key][0, 0] = torch.nan
        case "integers":
            weights = {name: tensor.to(torch.int8) for name, tensor in weights.items()}
    with pytest.raises(CheckpointError, match=problem):
        load_vae(written(weights, tmp_path))


@layouts
@pytest.mark.parametrize("gone", ["quant_conv", "post_quant_conv"])
def test_every_file_has_the_convolutions_beside_its_halves(layout: str, gone: str, tmp_path: Path) -> None:
    names = {"quant_conv": ("conv1.", "quant_conv."), "post_quant_conv": ("conv2.", "post_quant_conv.")}
    weights = {key: value for key, value in stored(layout).items() if not key.startswith(names[gone])}
    with pytest.raises(CheckpointError, match=f"incomplete VAE: its '{gone}' is missing"):
        load_vae(written(weights, tmp_path))


NEWER = {"Wan 2.2": replace(WAN22, z_channels=48), "Qwen-Image 2.1": replace(QWEN21, z_channels=64)}


@pytest.mark.parametrize("layout", ["wan", "wan (diffusers)"])
@pytest.mark.parametrize("family", NEWER)
def test_wan_22_and_its_kind(family: str, layout: str, tmp_path: Path) -> None:
    config = NEWER[family]
    weights = weights_of(network(config))
    kept = own_names(weights, config, taps=1) if layout == "wan" else diffusers_names(weights, config)
    loaded = load_vae(written(kept, tmp_path))
    assert isinstance(loaded.model, WanVAE)
    assert loaded.model.config == config
    found = loaded.model.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    assert (loaded.identity.family, loaded.identity.layout) == (FAMILIES[family], layout)
    assert loaded.space is not None
    latents = torch.randn(1, config.z_channels, 2, 2)
    row = FAMILIES[family]
    torch.testing.assert_close(loaded.space.for_vae(latents)[0, 7], latents[0, 7] * row.deviation[7] + row.mean[7])
    half = {key: tensor for key, tensor in kept.items() if key.startswith(("decoder.", "conv2.", "post_quant_conv."))}
    assert isinstance(model := load_vae(written(half, tmp_path)).model, WanVAE)
    assert (model.config.frames, model.config.patch) == (config.frames, config.patch)


def test_halves_that_do_other_things_to_frames(tmp_path: Path) -> None:
    config = NEWER["Wan 2.2"]
    weights = own_names(weights_of(network(config)), config)
    gone = next(key for key in weights if key.startswith("decoder.") and key.endswith("time_conv.weight"))
    del weights[gone]
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_vae(written(weights, tmp_path))


def test_a_config_that_says_otherwise(tmp_path: Path) -> None:
    path = written(stored("wan (diffusers)"), tmp_path, "diffusion_pytorch_model.safetensors")
    family = FAMILIES["Qwen-Image"]
    config = {
        "_class_name": "AutoencoderKLWan",
        "z_dim": 16,
        "latents_mean": list(family.mean),
        "latents_std": list(family.deviation),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert identify(path).family is family
    (tmp_path / "config.json").write_text(json.dumps({**config, "latents_std": [1.0] * 16}))
    identity = identify(path)
    assert (identity.family, identity.candidates) == (None, ())
    assert "mean and deviation for each channel, as no known family has" in identity.explanation
    for odd in ([1.0], ["x"] * 16, [None] * 16):
        (tmp_path / "config.json").write_text(json.dumps({**config, "latents_mean": odd}))
        assert identify(path).family is None


def test_other_channels_are_no_known_familys(tmp_path: Path) -> None:
    identity = identify(written(stored("wan", WAN), tmp_path))
    assert (identity.family, identity.candidates) == (None, ())
    assert "No known family of VAEs has 4 latent channels" in identity.explanation


def test_it_is_no_autoencoder_kl() -> None:
    with pytest.raises(CheckpointError, match="Qwen-Image or Wan"):
        convert_to_ldm(stored("wan"))


def test_latents_of_one_frame_are_a_pictures(tmp_path: Path) -> None:
    latents = torch.randn(2, 16, 1, 3, 4)
    save_file({"latents": latents}, tmp_path / "z.safetensors")
    assert torch.equal(load_latents(tmp_path / "z.safetensors")[0], latents[:, :, 0])
    save_file({"latents": torch.randn(1, 16, 2, 3, 4)}, tmp_path / "z.safetensors")
    with pytest.raises(InputError, match=re.escape("a video's")):
        load_latents(tmp_path / "z.safetensors")


def test_the_layout_of_the_weights_does_not_matter_to_the_picture(tmp_path: Path) -> None:
    z = torch.randn(1, 16, 2, 3)
    pictures = []
    for layout in LAYOUTS:
        model = load_vae(written(stored(layout), tmp_path), dtype=FP32).exact
        assert model is not None
        pictures.append(model.decode(z))
    assert torch.equal(pictures[0], network(CONFIG).decode(z))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
