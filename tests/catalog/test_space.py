"""The step between the sampler's latents and the VAE's: there and back, written down and read, compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vae_lib.catalog import FAMILIES, LatentSpace, family_of_space

PACKED = LatentSpace(torch.rand(1, 8, 1, 1) + 0.5, torch.randn(1, 8, 1, 1), 2)
UNPACKED = replace(PACKED, packed=False)  # normalised in squares, and unpacked again
SPACES = [LatentSpace(0.18215), LatentSpace(0.3611, 0.1159), PACKED, UNPACKED]


@pytest.mark.parametrize("space", SPACES)
def test_there_and_back(space: LatentSpace) -> None:
    latents = torch.randn(2, 8, 3, 5) if space.packed else torch.randn(2, 2, 6, 10)
    unpacked = space.for_vae(latents)
    assert unpacked.shape == (2, 8 // space.patch**2, 3 * space.patch, 5 * space.patch)
    assert torch.allclose(space.for_diffusion(unpacked), latents, atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_written_down_and_read(space: LatentSpace) -> None:
    metadata = space.metadata()
    assert space.same_as(LatentSpace.parse(metadata["latent_space"]))
    factors = {"scaling_factor", "shift_factor"}
    assert (factors <= set(metadata)) is (space.patch == 1)  # what older versions and other programs read


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "{}", "3", '{"scale": 1}', '{"scale": 0, "shift": 0, "patch": 1}',
        '{"scale": NaN, "shift": 0, "patch": 1}', '{"scale": 1, "shift": [], "patch": 1}',
        '{"scale": [1, 0], "shift": 0, "patch": 1}', '{"scale": 1, "shift": 0, "patch": 0}',
        '{"scale": 1, "shift": 0, "patch": true}', '{"scale": 1, "shift": "a", "patch": 1}',
        '{"scale": 1, "shift": 0, "patch": 2.5}', "[" * 100_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        LatentSpace.parse(text)


def test_unpacked_latents_are_normalised_by_squares() -> None:
    """Mugen's, as in Forge Neo: whole squares, which zeros complete."""
    latents = torch.randn(1, 2, 6, 10)
    packed = torch.nn.functional.pixel_unshuffle(latents, 2)
    assert torch.equal(UNPACKED.for_vae(latents), PACKED.for_vae(packed))
    completed = torch.nn.functional.pad(latents[:, :, :5, :9], (0, 1, 0, 1))
    assert torch.equal(UNPACKED.for_vae(latents[:, :, :5, :9]), UNPACKED.for_vae(completed))


def test_those_of_taesd_only_have_to_be_packed() -> None:
    latents = torch.randn(1, 2, 6, 10)
    assert torch.equal(PACKED.of_taesd(latents), torch.nn.functional.pixel_unshuffle(latents, 2))
    assert torch.equal(UNPACKED.of_taesd(latents), latents)


def test_a_file_that_does_not_say_whether_they_are_packed() -> None:
    assert LatentSpace.parse('{"scale": [1, 2, 1, 2], "shift": 0, "patch": 2}').packed


def test_the_same_space() -> None:
    for number, space in enumerate(SPACES):
        assert [space.same_as(other) for other in SPACES] == [index == number for index in range(len(SPACES))]
    assert LatentSpace(0.18215).same_as(LatentSpace(0.182150001))
    assert not PACKED.same_as(LatentSpace(PACKED.scale, PACKED.shift))


def test_the_family_of_a_space() -> None:
    for family in FAMILIES.values():
        if family.packing is None:
            found = family_of_space(family.latent_channels, LatentSpace.of(family, {}))
            assert found is not None
            assert found.shares_latents(family)
    numbers = torch.ones(1, 128, 1, 1)
    assert family_of_space(128, LatentSpace(numbers, numbers, 2)) is FAMILIES["FLUX.2"]
    assert family_of_space(32, LatentSpace(numbers, numbers, 2)) is None
    assert family_of_space(32, LatentSpace(numbers, numbers, 2, packed=False)) is FAMILIES["Mugen"]
    assert family_of_space(4, LatentSpace(0.5)) is None
    assert family_of_space(4, LatentSpace(0.18215, 0.0, 2)) is None
