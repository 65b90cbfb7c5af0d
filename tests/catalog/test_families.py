"""The families: one row each, held here to what their makers publish, and the way between their latents."""

from __future__ import annotations

import pytest
import torch

from vae_lib.catalog import (
    FAMILIES,
    Family,
    LatentSpace,
    families_of,
    families_of_diffusion_model,
    family_by_factors,
    family_in_text,
    family_of_space,
)


def test_the_rows() -> None:
    factors = {name: (f.latent_channels, f.scaling_factor, f.shift_factor) for name, f in FAMILIES.items()}
    assert factors == {
        "SD1": (4, 0.18215, 0.0),
        "SD2": (4, 0.18215, 0.0),
        "SDXL": (4, 0.13025, 0.0),
        "Playground v2.5": (4, 1.0, 0.0),
        "x4 upscaler": (4, 0.08333, 0.0),
        "SD3": (16, 1.5305, 0.0609),
        "FLUX.1": (16, 0.3611, 0.1159),
        "FLUX.2": (32, 1.0, 0.0),
        "Mugen": (32, 1.0, 0.0),
        "Qwen-Image": (16, 1.0, 0.0),
        "Wan 2.2": (48, 1.0, 0.0),
        "Qwen-Image 2.1": (64, 1.0, 0.0),
    }
    stems = [family.taesd_stem for family in FAMILIES.values()]
    assert stems == [
        "taesd",
        "taesd",
        "taesdxl",
        None,
        None,
        "taesd3",
        "taef1",
        "taef2",
        "taef2",
        "taew2_1",
        None,
        None,
    ]
    assert [f.sampler_channels for f in FAMILIES.values()] == [4, 4, 4, 4, 4, 16, 16, 128, 32, 16, 48, 64]


def test_who_shares_latents() -> None:
    assert FAMILIES["SD1"].shares_latents(FAMILIES["SD2"])
    assert not FAMILIES["SD1"].shares_latents(FAMILIES["SDXL"])
    assert not FAMILIES["FLUX.2"].shares_latents(Family("another", 32))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_is_found_by_its_own_name(name: str) -> None:
    assert family_in_text(f"my {name} vae") is FAMILIES[name]
    family = FAMILIES[name]
    has_own = name not in ("Mugen", "Playground v2.5")
    assert (family in families_of(family.latent_channels, family.architecture)) is has_own


@pytest.mark.parametrize(
    "text",
    [
        "qwen_image_vae",
        "Qwen2D_VAE",
        "wan_2.1_vae",
        "Wan2.1_VAE",
        "anima-preview",
        "krea-2",
        "Qwen-Image-Edit",
        "taew2_1",
    ],
)
def test_the_names_of_those_who_share_wans_vae(text: str) -> None:
    assert family_in_text(text) is FAMILIES["Qwen-Image"]


@pytest.mark.parametrize(
    "text", ["wan2.2_vae", "taew2_2", "lighttaew2_1", "swan 2.1", "animal", "krea", "flux1-krea-dev"]
)
def test_other_names(text: str) -> None:
    assert family_in_text(text) is not FAMILIES["Qwen-Image"]


def test_qwen_images_latents_are_normalised_channel_by_channel() -> None:
    family = FAMILIES["Qwen-Image"]
    space = LatentSpace.of(family, {})
    latents = torch.randn(2, 16, 3, 2)
    z = space.for_vae(latents)
    torch.testing.assert_close(z[1, 3], latents[1, 3] * 2.6558 + 0.1075)
    torch.testing.assert_close(space.for_diffusion(z), latents)
    assert family_of_space(16, LatentSpace.parse(space.metadata()["latent_space"])) is family
    assert not family.shares_latents(FAMILIES["SD3"])
    assert family not in families_of(16)
    other = LatentSpace(torch.ones(1, 16, 1, 1), torch.zeros(1, 16, 1, 1))
    assert family_of_space(16, other) is None


def test_the_numbers_are_those_of_diffusers() -> None:
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        config = AutoencoderKLQwenImage().config
    family = FAMILIES["Qwen-Image"]
    assert (tuple(config.latents_mean), tuple(config.latents_std)) == (family.mean, family.deviation)


@pytest.mark.parametrize(
    ("text", "name"),
    [("flux2-vae", "FLUX.2"), ("flux.2-klein-4b", "FLUX.2"), ("flux-2-dev", "FLUX.2"), ("flux-ae", "FLUX.1")],
)
def test_the_two_fluxes_are_told_apart(text: str, name: str) -> None:
    assert family_in_text(text) is FAMILIES[name]


def test_one_of_its_own() -> None:
    assert family_by_factors(4, 0.18215, 0.0) is FAMILIES["SD1"]
    assert family_by_factors(4, 0.5, 0.1) == Family("its own", 4, 0.5, 0.1)


@pytest.mark.parametrize(
    ("tensor", "width", "names"),
    [
        ("double_blocks.0.img_attn.qkv.weight", 1, ["FLUX.1", "FLUX.2"]),  # Chroma's as well
        ("distilled_guidance_layer.norms.0.scale", 1, []),
        ("cap_embedder.1.weight", 1, ["FLUX.1"]),  # Lumina 2, Z-Image
        ("double_stream_blocks.0.block.adaLN_modulation.1.bias", 1, ["FLUX.1"]),  # HiDream
        ("joint_blocks.0.x_block.attn.qkv.weight", 1, ["SD3"]),
        ("double_layers.0.attn.w1q.weight", 1, ["SDXL"]),  # AuraFlow
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 768, ["SD1"]),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 1024, ["SD2", "x4 upscaler"]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 2048, ["SDXL"]),
    ],
)
def test_the_families_of_a_diffusion_model(tensor: str, width: int, names: list[str]) -> None:
    found = families_of_diffusion_model({f"model.diffusion_model.{tensor}": (1, width)})
    assert [family.name for family in found] == names


@pytest.mark.parametrize(
    "text",
    [
        "ae", "ae_bf16", "ae.fp16", "FluxVAE", "flux_vae", "flux1-vae", "zimage_vae", "z_image_turbo_vae",
        "Z-Image-Turbo", "ZImagePipeline", "chroma_vae", "Chroma1-HD", "lumina2_vae", "Lumina-Image-2.0",
        "FluxPipeline", "hidream_vae",
    ],
)  # fmt: skip
def test_the_names_of_those_who_share_flux1s_vae(text: str) -> None:
    assert family_in_text(text) is FAMILIES["FLUX.1"]


@pytest.mark.parametrize("text", ["aerial", "my_ae", "flux2_vae", "fluxion", "chromatic", "lumina_next", "vae", "ae2"])
def test_names_that_say_nothing_of_it(text: str) -> None:
    assert family_in_text(text) is not FAMILIES["FLUX.1"]


def test_factors_are_divided_by_then_added() -> None:
    space = LatentSpace.of(FAMILIES["FLUX.1"], {})
    latents = torch.randn(1, 16, 2, 3)
    assert torch.equal(space.for_vae(latents), latents / 0.3611 + 0.1159)
    torch.testing.assert_close(space.for_diffusion(space.for_vae(latents)), latents)


def test_flux2_is_unpacked_and_denormalised_as_published() -> None:
    """diffusers' Flux2Pipeline: latents * sqrt(var + 1e-4) + mean over 128 channels, then 2 x 2 of them a square."""
    latents, mean, variance = torch.randn(2, 128, 3, 5), torch.randn(128), torch.rand(128)
    deviation = torch.sqrt(variance.view(1, -1, 1, 1) + 1e-4)
    unpacked = (latents * deviation + mean.view(1, -1, 1, 1)).reshape(2, 32, 2, 2, 3, 5)
    expected = unpacked.permute(0, 1, 4, 2, 5, 3).reshape(2, 32, 6, 10)
    space = LatentSpace.of(FAMILIES["FLUX.2"], {"bn.running_mean": mean, "bn.running_var": variance})
    torch.testing.assert_close(space.for_vae(latents), expected)
    norm = torch.nn.BatchNorm2d(128, eps=1e-4, affine=False).eval()  # what its encode does
    norm.running_mean, norm.running_var = mean, variance
    packed = expected.view(2, 32, 3, 2, 5, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 128, 3, 5)
    torch.testing.assert_close(space.for_diffusion(expected), norm(packed), rtol=1e-4, atol=1e-5)
