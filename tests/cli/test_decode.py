"""decode and encode, end to end on real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.planning.plans import smallest
from vae_lib.checkpoints import load_vae
from vae_lib.decode import Ladder
from vae_lib.networks import AutoencoderKL

from .conftest import DATA, VAE, Run

Runner = Callable[..., Run]


def plain(latents: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    loaded = load_vae(VAE, dtype=torch.float32)
    with torch.no_grad():
        return loaded.model.decode(latents / (scale or loaded.identity.scaling_factor or 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("route", ["auto", "full", "tiled", "offload", "cpu"])
def test_every_exact_route_gives_the_plain_picture(decode: Runner, latents: Path, tmp_path: Path, route: str) -> None:
    out, tensor = tmp_path / "out.png", tmp_path / "image.safetensors"
    done = decode(latents, "-o", out, "--tensor", tensor, "--route", route, "--measure", "--json")
    assert done.code == 0, done.err
    expected = plain(load_file(latents)["latents"])
    image = load_file(tensor)["image"]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    report = json.loads(done.out)
    assert report["route"] == ("full" if route == "auto" else route)
    assert report["peak_bytes"] <= report["predicted_peak_bytes"] <= 1.1 * report["peak_bytes"]
    assert report["bands"] >= 1
    assert report["seconds"] > 0
    assert report["reason"]
    with Image.open(out) as picture:
        assert picture.size == (7 * 8, 9 * 8)
        pixels = torch.tensor(list(picture.getdata())).view(72, 56, 3).permute(2, 0, 1)
    torch.testing.assert_close(pixels / 127.5 - 1, expected[0].clamp(-1, 1), atol=0.5 / 127.5 + 1e-4, rtol=0)


@pytest.mark.slow
def test_a_budget_is_kept(decode: Runner, tmp_path: Path) -> None:
    latents = tmp_path / "latents.safetensors"
    save_file({"latents": torch.randn(1, 4, 24, 24)}, latents)
    done = decode(latents, "-o", tmp_path / "a.png", "--budget", "12MB", "--measure", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["route"] in ("tiled", "offload")
    assert report["peak_bytes"] <= 12_000_000
    assert "full needs" in report["reason"]


@pytest.mark.slow
def test_a_budget_below_the_least_names_the_least_and_the_least_works(
    decode: Runner, latents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    done = decode(latents, "-o", out, "--budget", "100KB")
    assert done.code == 1
    assert not out.exists()
    loaded = load_vae(VAE, dtype=torch.float32).model
    assert isinstance(loaded, AutoencoderKL)
    least = smallest(Ladder(loaded).work("decode", 9, 7, 1))
    assert least is not None
    assert done.err.count("\n") == 1
    assert "which takes at least" in done.err
    assert decode(latents, "-o", out, "--budget", least.peak_bytes).code == 0


def test_a_batch_gives_one_file_each(decode: Runner, tmp_path: Path) -> None:
    latents = tmp_path / "latents.safetensors"
    save_file({"latents": torch.randn(3, 4, 4, 4)}, latents)
    assert decode(latents, "-o", tmp_path / "p.png").code == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["p-1.png", "p-2.png", "p-3.png"]


def test_factors_are_divided_by_then_added(run: Runner, latents: Path, tmp_path: Path) -> None:
    tensor = tmp_path / "image.safetensors"
    arguments = ("decode", latents, "--vae", VAE, "--tensor", tensor, "--device", "cpu")
    assert run(*arguments, "--scaling-factor", "2", "--shift-factor", "0.25").code == 0
    z = load_file(latents)["latents"]
    torch.testing.assert_close(load_file(tensor)["image"], plain(z / 2 + 0.25, 1.0), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_encode_then_decode_gives_the_photograph_back(run: Runner, decode: Runner, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    with Image.open(DATA / "coffee.jpg") as picture:
        picture.resize((150, 101)).save(photo)
    latents, back = tmp_path / "latents.safetensors", tmp_path / "back.safetensors"
    done = run("encode", photo, "--vae", VAE, "-o", latents, "--device", "cpu", "--budget", "20MB")
    assert done.code == 0, done.err
    assert "cropped photo.png from 150x101 to 144x96" in done.err
    assert load_file(latents)["latents"].shape == (1, 4, 12, 18)
    assert decode(latents, "--tensor", back).code == 0
    with Image.open(photo) as picture:
        pixels = torch.tensor(list(picture.crop((3, 2, 147, 98)).getdata())).view(96, 144, 3).permute(2, 0, 1)
    error = (load_file(back)["image"][0].clamp(-1, 1) - (pixels / 127.5 - 1)).square().mean()
    assert -10 * torch.log10(error / 4) > 15  # noise gives 8


def test_taesd_takes_the_latents_as_they_are(run: Runner, latents: Path, tmp_path: Path) -> None:
    path, tensor = tmp_path / "taesd.safetensors", tmp_path / "image.safetensors"
    other = AutoencoderTiny()
    save_file(other.state_dict(), path)
    done = run("decode", latents, "--taesd", path, "--route", "taesd", "--tensor", tensor, "--device", "cpu")
    assert done.code == 0, done.err
    assert "approximation" in done.out
    with torch.no_grad():
        expected = other.decode(load_file(latents)["latents"]).sample
    torch.testing.assert_close(load_file(tensor)["image"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--vae", "missing.safetensors"), "missing.safetensors"),
        ((), "--vae FILE"),
        (("--route", "taesd"), "--taesd FILE"),
    ],
)
def test_a_missing_file_is_told_in_a_sentence(
    run: Runner, latents: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = run("decode", latents, "-o", tmp_path / "a.png", "--device", "cpu", *arguments)
    assert done.code == 1
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_numbers_are_the_unets_fault(decode: Runner, tmp_path: Path, bad: float) -> None:
    latents = tmp_path / "latents.safetensors"
    z = torch.randn(1, 4, 4, 4)
    z[0, 1, 2, 3] = bad
    save_file({"latents": z}, latents)
    done = decode(latents, "-o", tmp_path / "a.png")
    assert done.code == 1
    assert "UNet" in done.err


def test_wrong_latent_channels_are_told(decode: Runner, tmp_path: Path) -> None:
    latents = tmp_path / "latents.safetensors"
    save_file({"latents": torch.randn(1, 16, 4, 4)}, latents)
    done = decode(latents, "-o", tmp_path / "a.png")
    assert done.code == 1
    assert "16 channels" in done.err


@pytest.mark.parametrize("output", ["nowhere/out.png", "out.xyz", "."])
def test_a_bad_output_is_told_and_nothing_is_left(decode: Runner, latents: Path, tmp_path: Path, output: str) -> None:
    before = sorted(tmp_path.iterdir())
    done = decode(latents, "-o", tmp_path / output)
    assert done.code == 1
    assert done.err.startswith("vae_lib: ")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--budget", "lots"),
        ("--budget", "0"),
        ("--scaling-factor", "0"),
        ("--scaling-factor", "nan"),
        ("--route", "magic"),
        ("--dtype", "fp8"),
    ],
)
def test_bad_use_is_exit_code_2(run: Runner, latents: Path, tmp_path: Path, arguments: tuple[str, str]) -> None:
    done = run("decode", latents, "--vae", VAE, "-o", tmp_path / "a.png", *arguments)
    assert done.code == 2
    assert arguments[0] in done.err
