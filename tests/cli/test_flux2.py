"""FLUX.2 on the command line: packed latents to a picture and back, and no other family's factors for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.networks import small
from tests.networks.small import weights_of
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig

from .conftest import Run

Runner = Callable[..., Run]
CONFIG = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, embed_dim=32)


@pytest.fixture
def network() -> AutoencoderKL:
    return small.network(CONFIG)


@pytest.fixture
def vae(network: AutoencoderKL, tmp_path: Path) -> Path:
    path = tmp_path / "flux2.safetensors"
    statistics = {"bn.running_mean": torch.randn(128), "bn.running_var": torch.rand(128) + 0.5}
    save_file(network.state_dict() | statistics, path)
    return path


def unpacked(latents: torch.Tensor, vae: Path) -> torch.Tensor:
    stored = load_file(vae)
    mean, variance = (stored[f"bn.running_{name}"].view(1, -1, 1, 1) for name in ("mean", "var"))
    return torch.nn.functional.pixel_shuffle(latents * (variance + 1e-4).sqrt() + mean, 2)


def decoded(run: Runner, latents: torch.Tensor, vae: Path, folder: Path) -> torch.Tensor:
    """The picture that the command line makes of latents, without a word."""
    given, image = folder / "l.safetensors", folder / "i.safetensors"
    save_file({"latents": latents}, given)
    done = run("decode", given, "--vae", vae, "--tensor", image, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    return load_file(image)["image"]


def test_packed_latents_become_the_picture(run: Runner, network: AutoencoderKL, vae: Path, tmp_path: Path) -> None:
    latents = torch.randn(1, 128, 3, 2)
    image = decoded(run, latents, vae, tmp_path)
    assert image.shape == (1, 3, 48, 32)  # 16 pixels a latent
    torch.testing.assert_close(image, network.decode(unpacked(latents, vae)), atol=1e-5, rtol=0)


def test_latents_that_are_not_packed_are_the_vaes_own(
    run: Runner, network: AutoencoderKL, vae: Path, tmp_path: Path
) -> None:
    z = torch.randn(1, 32, 3, 2)
    image = decoded(run, z, vae, tmp_path)
    torch.testing.assert_close(image, network.decode(z), atol=1e-5, rtol=0)


def test_a_picture_is_encoded_to_what_the_sampler_takes(
    run: Runner, network: AutoencoderKL, vae: Path, tmp_path: Path
) -> None:
    photo, latents = tmp_path / "photo.png", tmp_path / "l.safetensors"
    Image.effect_noise((56, 32), 60).convert("RGB").save(photo)
    done = run("encode", photo, "--vae", vae, "-o", latents, "--device", "cpu")
    assert done.code == 0
    assert "cropped photo.png from 56x32 to 48x32" in done.err
    packed = load_file(latents)["latents"]
    assert packed.shape == (1, 128, 2, 3)
    with Image.open(photo) as picture:
        pixels = torch.tensor(list(picture.crop((4, 0, 52, 32)).getdata())).view(1, 32, 48, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(unpacked(packed, vae), network.encode(pixels / 127.5 - 1), atol=1e-4, rtol=1e-4)
    assert run("decode", latents, "--vae", vae, "-o", tmp_path / "o.png", "--device", "cpu").code == 0


def test_its_taesd_takes_them_packed_and_unpacked(
    run: Runner, network: AutoencoderKL, vae: Path, tmp_path: Path
) -> None:
    tiny, tensor, photo = tmp_path / "taef2.safetensors", tmp_path / "i.safetensors", tmp_path / "photo.png"
    taesd = small.taesd(32)
    save_file(weights_of(taesd), tiny)
    latents = torch.randn(1, 128, 2, 3, generator=torch.Generator().manual_seed(4))
    expected = taesd.decode(torch.nn.functional.pixel_shuffle(latents, 2))
    for name, given in (("packed", latents), ("unpacked", torch.nn.functional.pixel_shuffle(latents, 2))):
        save_file({"latents": given.contiguous()}, tmp_path / f"{name}.safetensors")
        for with_vae in ((), ("--vae", vae)):
            if name == "unpacked" and with_vae:
                continue  # these would be the VAE's own
            arguments = (
                "decode",
                tmp_path / f"{name}.safetensors",
                *with_vae,
                "--taesd",
                tiny,
                "--route",
                "taesd",
            )
            done = run(*arguments, "--tensor", tensor, "--device", "cpu")
            assert done.code == 0, done.err
            torch.testing.assert_close(load_file(tensor)["image"], expected, atol=1e-5, rtol=0)
    Image.effect_noise((48, 32), 60).convert("RGB").save(photo)
    done = run(
        "encode",
        photo,
        "--taesd",
        tiny,
        "--route",
        "taesd",
        "-o",
        tmp_path / "l.safetensors",
        "--device",
        "cpu",
    )
    assert done.code == 0, done.err
    assert load_file(tmp_path / "l.safetensors")["latents"].shape == (
        1,
        128,
        2,
        3,
    )  # as the sampler takes them


def test_without_statistics_nothing_is_assumed(run: Runner, network: AutoencoderKL, vae: Path, tmp_path: Path) -> None:
    bare = {key: value for key, value in load_file(vae).items() if not key.startswith("bn.")}
    save_file(bare, tmp_path / "bare.safetensors")
    save_file({"latents": torch.ones(1, 32, 2, 2)}, tmp_path / "l.safetensors")
    arguments = ("decode", tmp_path / "l.safetensors", "--vae", tmp_path / "bare.safetensors", "--device", "cpu",
                 "--tensor", tmp_path / "i.safetensors")  # fmt: skip
    done = run(*arguments)
    assert done.code == 1
    assert done.err.startswith("vae_lib: bare.safetensors: It looks like FLUX.2's VAE, but the statistics")
    assert not (tmp_path / "i.safetensors").exists()
    explanation = run("inspect", tmp_path / "bare.safetensors").out
    assert done.err.removeprefix("vae_lib: bare.safetensors: ").strip() in explanation
    assert run(*arguments, "--scaling-factor", "2").code == 0
    torch.testing.assert_close(
        load_file(tmp_path / "i.safetensors")["image"],
        network.decode(torch.full((1, 32, 2, 2), 0.5)),
        atol=1e-4,
        rtol=0,
    )


def test_unknown_channels_are_refused_unless_factors_are_given(run: Runner, tmp_path: Path) -> None:
    config = AutoencoderKLConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=7, embed_dim=7)
    save_file(weights_of(small.network(config)), tmp_path / "vae.safetensors")
    save_file({"latents": torch.ones(1, 7, 4, 4)}, tmp_path / "l.safetensors")
    arguments = ("decode", tmp_path / "l.safetensors", "--vae", tmp_path / "vae.safetensors", "-o",
                 tmp_path / "o.png", "--device", "cpu")  # fmt: skip
    assert "No known family of VAEs has 7 latent channels" in run(*arguments).err
    assert not (tmp_path / "o.png").exists()
    assert run(*arguments, "--scaling-factor", "1").code == 0
