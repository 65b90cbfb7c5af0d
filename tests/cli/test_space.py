"""Latents, VAE and TAESD of different spaces on the command line: never a wrong picture without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.networks.small import SD_SHAPED, network, sd3_like, taesd, weights_of
from vae_lib.catalog import LatentSpace
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.planning import Route

from .conftest import DATA, VAE, Run

Runner = Callable[..., Run]
SDXL, SD1 = 0.13025, 0.18215
ARCHITECTURES = {SDXL: "stable-diffusion-xl-v1-base", SD1: "stable-diffusion-v1"}
Z = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(3))  # as a VAE gives them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """VAEs and TAESDs of four channels, and a picture."""
    for name, factor in (("sdxl", SDXL), ("sd1", SD1)):
        metadata = {"modelspec.architecture": ARCHITECTURES[factor]}
        save_file(weights_of(network(SD_SHAPED)), tmp_path / f"{name}.safetensors", metadata)
    save_file(weights_of(network(SD_SHAPED)), tmp_path / "myvae.safetensors")
    for name in ("taesd", "taesdxl", "tiny"):
        save_file(weights_of(taesd()), tmp_path / f"{name}.safetensors")
    Image.effect_noise((24, 16), 60).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path


def latents(folder: Path, tensor: Tensor, space: LatentSpace | None = None) -> Path:
    path = folder / "l.safetensors"
    save_file({"latents": tensor}, path, None if space is None else space.metadata())
    return path


def as_comfyui(folder: Path, z: Tensor) -> Path:
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, folder / "c.latent")
    return folder / "c.latent"


def as_kohya(folder: Path, z: Tensor) -> Path:
    np.savez(folder / "k.npz", latents=z[0].numpy())
    return folder / "k.npz"


OWN = pytest.mark.parametrize("write", [as_comfyui, as_kohya])


def picture(run: Runner, folder: Path, *arguments: object) -> tuple[Tensor, str]:
    """The picture that comes out, and what is said on stderr."""
    done = run(*arguments, "--tensor", folder / "i.safetensors", "--device", "cpu")
    assert done.code == 0, done.err
    return load_file(folder / "i.safetensors")["image"], done.err


def refused(run: Runner, folder: Path, *arguments: object) -> str:
    done = run(*arguments, "--tensor", folder / "i.safetensors", "--device", "cpu")
    assert done.code == 1, done.out
    assert not (folder / "i.safetensors").exists()
    assert done.err.count("\n") == 1
    return done.err


@OWN
def test_latents_as_the_vae_gives_them_are_scaled_for_taesd(
    write: Callable[..., Path], run: Runner, folder: Path
) -> None:
    given = write(folder, Z)
    for name, factor in (("taesdxl", SDXL), ("taesd", SD1)):
        found, said = picture(
            run, folder, "decode", given, "--taesd", folder / f"{name}.safetensors", "--route", "taesd"
        )
        torch.testing.assert_close(found, taesd().decode(Z * factor), atol=1e-5, rtol=0)
        assert said == ""
    found, _ = picture(run, folder, "decode", given, "--vae", folder / "sdxl.safetensors")
    torch.testing.assert_close(found, network(SD_SHAPED).decode(Z), atol=1e-4, rtol=0)


@OWN
def test_in_the_fallback_too(
    write: Callable[..., Path], run: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_lib.cli.work.DEFAULT_ORDER", (Route.TAESD,))  # what is left when nothing else fits
    files = ("--vae", folder / "sdxl.safetensors", "--taesd", folder / "taesdxl.safetensors")
    found, _ = picture(run, folder, "decode", write(folder, Z), *files)
    torch.testing.assert_close(found, taesd().decode(Z * SDXL), atol=1e-5, rtol=0)


@OWN
def test_of_a_taesd_that_nothing_tells_of_it_is_asked(write: Callable[..., Path], run: Runner, folder: Path) -> None:
    files = ("decode", write(folder, Z), "--taesd", folder / "tiny.safetensors", "--route", "taesd")
    said = refused(run, folder, *files)
    assert said.endswith("Say whose latents they are with --family SD1, SD2 or SDXL.\n")
    found, _ = picture(run, folder, *files, "--family", "sdxl")
    torch.testing.assert_close(found, taesd().decode(Z * SDXL), atol=1e-5, rtol=0)
    found, _ = picture(run, folder, *files, "--vae", folder / "sd1.safetensors")  # whose latents it says
    torch.testing.assert_close(found, taesd().decode(Z * SD1), atol=1e-5, rtol=0)


def test_what_taesd_encodes_says_whose_it_is(run: Runner, folder: Path) -> None:
    """A factor of 1 beside them made every later picture pale."""
    out = folder / "e.safetensors"
    files = ("encode", folder / "photo.png", "--route", "taesd", "-o", out, "--device", "cpu")
    assert run(*files, "--taesd", folder / "taesdxl.safetensors").code == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["scaling_factor"] == "0.13025"
    found, _ = picture(run, folder, "decode", out, "--vae", folder / "sdxl.safetensors")
    torch.testing.assert_close(found, network(SD_SHAPED).decode(load_file(out)["latents"] / SDXL), atol=1e-4, rtol=0)
    (folder / "i.safetensors").unlink()
    assert "The latents are SDXL's" in refused(run, folder, "decode", out, "--vae", folder / "sd1.safetensors")
    done = run(*files, "--taesd", folder / "tiny.safetensors")
    assert done.code == 1
    assert done.err.endswith("Say whose latents they are with --family SD1, SD2 or SDXL.\n")


def test_latents_of_one_family_and_the_vae_of_another(run: Runner, folder: Path) -> None:
    given = latents(folder, Z, LatentSpace(SDXL))
    said = refused(run, folder, "decode", given, "--vae", folder / "sd1.safetensors")
    assert said == (
        "vae_lib: The latents are SDXL's and sd1.safetensors is the VAE of SD1: the picture would be wrong. Choose the "
        "VAE of SDXL. Say whose latents they are with --family SDXL or SD1.\n"
    )
    found, _ = picture(run, folder, "decode", given, "--vae", folder / "sd1.safetensors", "--family", "SD1")
    torch.testing.assert_close(found, network(SD_SHAPED).decode(Z / SD1), atol=1e-4, rtol=0)


def test_latents_of_a_family_that_nobody_knows(run: Runner, folder: Path) -> None:
    given = latents(folder, Z, LatentSpace(0.7))
    said = refused(run, folder, "decode", given, "--vae", folder / "sd1.safetensors")
    assert said.startswith(
        "vae_lib: The latents are another family's (scaling factor 0.7) and sd1.safetensors is the VAE"
    )
    found, _ = picture(run, folder, "decode", given, "--vae", folder / "sd1.safetensors", "--scaling-factor", "0.7")
    torch.testing.assert_close(found, network(SD_SHAPED).decode(Z / 0.7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("route", ["taesd", "auto"])
def test_a_vae_of_one_family_and_the_taesd_of_another(route: str, run: Runner, folder: Path) -> None:
    files = ("--vae", folder / "sdxl.safetensors", "--taesd", folder / "taesd.safetensors", "--route", route)
    said = refused(run, folder, "decode", latents(folder, Z), *files)
    assert "taesd.safetensors takes latents of SD1 and those of sdxl.safetensors are of SDXL" in said


def test_the_taesd_of_sd3_and_the_vae_of_flux1(run: Runner, folder: Path) -> None:
    config = sd3_like(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    save_file(weights_of(network(config)), folder / "ae.safetensors", {"modelspec.architecture": "flux-1-dev"})
    for name in ("taesd3", "taef1"):
        save_file(weights_of(taesd(16)), folder / f"{name}.safetensors")
    z = torch.randn(1, 16, 2, 3)
    files = ("decode", latents(folder, z), "--vae", folder / "ae.safetensors", "--route", "taesd", "--taesd")
    assert "taesd3.safetensors takes latents of SD3" in refused(run, folder, *files, folder / "taesd3.safetensors")
    found, _ = picture(run, folder, *files, folder / "taef1.safetensors")
    torch.testing.assert_close(found, taesd(16).decode(z), atol=1e-5, rtol=0)


def test_latents_of_one_family_and_the_taesd_of_another(run: Runner, folder: Path) -> None:
    given = latents(folder, Z, LatentSpace(SDXL))
    said = refused(run, folder, "decode", given, "--taesd", folder / "taesd.safetensors", "--route", "taesd")
    assert "The latents are SDXL's and taesd.safetensors is the TAESD of SD1" in said


def test_where_nothing_tells_it_is_asked_and_answered(run: Runner, folder: Path) -> None:
    files = ("--vae", folder / "myvae.safetensors")
    said = refused(run, folder, "decode", latents(folder, Z), *files)
    assert said == (
        "vae_lib: myvae.safetensors: The VAEs of SD1, SD2 and SDXL have the same shape, and nothing else in the file "
        "tells. Say whose latents they are with --family SD1, SD2 or SDXL.\n"
    )
    for options, factor in ((("--family", "SDXL"), SDXL), (("--scaling-factor", "0.5"), 0.5)):
        found, _ = picture(run, folder, "decode", latents(folder, Z), *files, *options)
        torch.testing.assert_close(found, network(SD_SHAPED).decode(Z / factor), atol=1e-4, rtol=0)
    found, said = picture(
        run, folder, "decode", latents(folder, Z, LatentSpace(SDXL)), *files
    )  # they say it themselves
    torch.testing.assert_close(found, network(SD_SHAPED).decode(Z / SDXL), atol=1e-4, rtol=0)
    assert said == ""


def test_a_name_alone_is_a_guess_that_is_said(run: Runner, folder: Path) -> None:
    (folder / "myvae.safetensors").rename(folder / "my_sdxl_vae.safetensors")
    found, said = picture(run, folder, "decode", latents(folder, Z), "--vae", folder / "my_sdxl_vae.safetensors")
    torch.testing.assert_close(found, network(SD_SHAPED).decode(Z / SDXL), atol=1e-4, rtol=0)
    assert said.endswith("Its name says SDXL. Latents of SDXL are assumed. If they are another's, give --family.\n")


def test_a_guess_is_not_said_where_the_latents_tell(run: Runner, folder: Path) -> None:
    (folder / "myvae.safetensors").rename(folder / "my_sdxl_vae.safetensors")
    for given in (latents(folder, Z, LatentSpace(SDXL)), as_comfyui(folder, Z)):
        assert picture(run, folder, "decode", given, "--vae", folder / "my_sdxl_vae.safetensors")[1] == ""


def test_factors_by_hand_are_those_of_taesds_latents_too(run: Runner, folder: Path) -> None:
    files = ("decode", latents(folder, Z * 0.5), "--taesd", folder / "taesdxl.safetensors", "--route", "taesd")
    found, _ = picture(run, folder, *files, "--scaling-factor", "0.5")
    torch.testing.assert_close(found, taesd().decode(Z * SDXL), atol=1e-5, rtol=0)


def test_playgrounds_latents_are_not_sdxls(run: Runner, folder: Path) -> None:
    stored = {f"first_stage_model.{key}": value for key, value in weights_of(network(SD_SHAPED)).items()}
    mean, deviation = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])
    save_file(stored | {"edm_mean": mean, "edm_std": deviation}, folder / "pg.safetensors")
    found, said = picture(run, folder, "decode", latents(folder, Z), "--vae", folder / "pg.safetensors")
    z = Z * deviation.view(1, 4, 1, 1) / 0.5 + mean.view(1, 4, 1, 1)
    torch.testing.assert_close(found, network(SD_SHAPED).decode(z), atol=1e-4, rtol=0)
    assert said == ""
    files = ("--vae", folder / "pg.safetensors", "--taesd", folder / "taesdxl.safetensors")
    (folder / "i.safetensors").unlink()
    assert "takes latents of SDXL and those of pg" in refused(run, folder, "decode", latents(folder, Z), *files)


def test_the_x4_upscalers_latents(run: Runner, folder: Path) -> None:
    config = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1)
    save_file(weights_of(network(config)), folder / "x4.safetensors")
    found, said = picture(run, folder, "decode", latents(folder, Z), "--vae", folder / "x4.safetensors")
    assert found.shape == (1, 3, 12, 8)
    torch.testing.assert_close(found, network(config).decode(Z / 0.08333), atol=1e-4, rtol=0)
    assert said == ""
    Image.effect_noise((20, 12), 60).convert("RGB").save(folder / "small.png")
    done = run("encode", folder / "small.png", "--vae", folder / "x4.safetensors", "-o", folder / "e.safetensors")
    assert (done.code, done.err) == (0, "")  # nothing is cropped
    assert load_file(folder / "e.safetensors")["latents"].shape == (1, 4, 3, 5)


def test_a_family_that_the_network_cannot_be_of(run: Runner, folder: Path) -> None:
    said = refused(
        run, folder, "decode", latents(folder, Z), "--vae", folder / "sdxl.safetensors", "--family", "x4upscaler"
    )
    assert "sdxl.safetensors cannot be of x4 upscaler" in said
    assert run("decode", "x", "--family", "SD9").code == 2


def test_the_bundled_ones_belong_together(run: Runner, folder: Path) -> None:
    """By their metadata, though the name of the one says TAESD, which is SD1's."""
    files = ("--vae", VAE, "--taesd", DATA / "vae_guard_taesd.safetensors")
    given = latents(folder, Z)
    exact, said = picture(run, folder, "decode", given, *files)
    assert said == ""
    approximate, said = picture(run, folder, "decode", given, *files, "--route", "taesd")
    assert said == ""
    assert approximate.shape == exact.shape
