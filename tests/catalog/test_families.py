"""The families: one row each, held here to what their makers publish, and the way between their latents."""

from __future__ import annotations

import pytest
import torch

from vae_lib.catalog import (
    FAMILIES,
    Family,
    LatentSpace,
    families_of,
    family_by_factors,
    family_in_text,
    family_of_diffusion_model,
)


def test_the_rows() -> None:
    factors = {name: (f.latent_channels, f.scaling_factor, f.shift_factor) for name, f in FAMILIES.items()}
    assert factors == {
        "SD1": (4, 0.18215, 0.0),
        "SD2": (4, 0.18215, 0.0),
        "SDXL": (4, 0.13025, 0.0),
        "SD3": (16, 1.5305, 0.0609),
        "FLUX.1": (16, 0.3611, 0.1159),
        "FLUX.2": (32, 1.0, 0.0),
    }
    stems = [family.taesd_stem for family in FAMILIES.values()]
    assert stems == ["taesd", "taesd", "taesdxl", "taesd3", "taef1", None]
    assert [family.sampler_channels for family in FAMILIES.values()] == [4, 4, 4, 16, 16, 128]


def test_who_shares_latents() -> None:
    assert FAMILIES["SD1"].shares_latents(FAMILIES["SD2"])
    assert not FAMILIES["SD1"].shares_latents(FAMILIES["SDXL"])
    assert not FAMILIES["FLUX.2"].shares_latents(Family("another", 32))


@pytest.mark.parametrize("name", FAMILIES)
def test_each_is_found_by_its_own_name(name: str) -> None:
    assert family_in_text(f"my {name} vae") is FAMILIES[name]
    assert FAMILIES[name] in families_of(FAMILIES[name].latent_channels)


@pytest.mark.parametrize(
    ("text", "name"),
    [("flux2-vae", "FLUX.2"), ("flux.2-klein-4b", "FLUX.2"), ("flux-2-dev", "FLUX.2"), ("flux-ae", "FLUX.1")],
)
def test_the_two_fluxes_are_told_apart(text: str, name: str) -> None:
    assert family_in_text(text) is FAMILIES[name]


def test_one_of_its_own() -> None:
    assert family_by_factors(4, 0.18215, 0.0) is FAMILIES["SD1"]
    assert family_by_factors(4, 0.5, 0.1) == Family("its own", 4, 0.5, 0.1)


def test_a_transformer_tells_only_families_of_these_channels() -> None:
    shapes = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": (1, 1)}
    assert family_of_diffusion_model(shapes, 16) is FAMILIES["FLUX.1"]
    assert family_of_diffusion_model(shapes, 32) is FAMILIES["FLUX.2"]
    assert family_of_diffusion_model(shapes, 4) is None


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
