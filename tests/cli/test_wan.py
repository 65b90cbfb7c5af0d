"""Qwen-Image's VAE on the command line: the sampler's latents to a picture and back, by every route."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.networks import small, taehv
from tests.networks.small import WAN, weights_of
from tests.networks.wan_layouts import own_names
from vae_lib.catalog import FAMILIES
from vae_lib.networks import WanVAE

from .conftest import Run

Runner = Callable[..., Run]
CONFIG = replace(WAN, z_channels=16)
MEAN, DEVIATION = (
    torch.tensor(numbers).view(1, -1, 1, 1)
    for numbers in (FAMILIES["Qwen-Image"].mean, FAMILIES["Qwen-Image"].deviation)
)


@pytest.fixture
def network() -> WanVAE:
    return small.network(CONFIG)


@pytest.fixture
def vae(network: WanVAE, tmp_path: Path) -> Path:
    save_file(own_names(weights_of(network)), tmp_path / "qwen_image_vae.safetensors")
    return tmp_path / "qwen_image_vae.safetensors"


@pytest.mark.parametrize("route", ["auto", "full", "tiled", "offload", "cpu"])
def test_decode(route: str, run: Runner, network: WanVAE, vae: Path, tmp_path: Path) -> None:
    latents = torch.randn(1, 16, 5, 3)
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    image = tmp_path / "i.safetensors"
    done = run(
        "decode", tmp_path / "l.safetensors", "--vae", vae, "--tensor", image, "--device", "cpu", "--route", route
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    wanted = network.decode(latents * DEVIATION + MEAN)
    torch.testing.assert_close(load_file(image)["image"], wanted, atol=1e-5, rtol=0)


def test_its_taesd(run: Runner, tmp_path: Path) -> None:
    latents, image, tiny = torch.randn(1, 16, 2, 3), tmp_path / "i.safetensors", tmp_path / "taew2_1.pth"
    torch.save(taehv.weights(), tiny)
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    options = ("--taesd", tiny, "--route", "taesd", "--device", "cpu")
    done = run("decode", tmp_path / "l.safetensors", "--tensor", image, *options)
    assert (done.code, done.err) == (0, "")
    wanted = taehv.frames(taehv.weights(), latents)[-1] * 2 - 1
    torch.testing.assert_close(load_file(image)["image"], wanted, atol=1e-4, rtol=0)
    Image.new("RGB", (16, 16)).save(tmp_path / "p.png")
    done = run("encode", tmp_path / "p.png", "-o", tmp_path / "z.safetensors", *options)
    assert "taew2_1.pth is a TAESD of a video model, of which VAE Guard has only the decoder" in done.err
    found = json.loads(run("inspect", tiny, "--json").out)
    assert (found["kind"], found["layout"]) == ("TAESD decoder", "taehv")


def test_encode_and_decode_again(run: Runner, network: WanVAE, vae: Path, tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (24, 40, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "p.png")
    latents = tmp_path / "l.safetensors"
    done = run("encode", tmp_path / "p.png", "--vae", vae, "-o", latents, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    picture = pixels.permute(2, 0, 1)[None].float() / 127.5 - 1
    mean = network.encode_moments(picture)[0]
    torch.testing.assert_close(load_file(latents)["latents"], (mean - MEAN) / DEVIATION, atol=1e-5, rtol=0)
    image = tmp_path / "i.safetensors"
    assert run("decode", latents, "--vae", vae, "--tensor", image, "--device", "cpu").code == 0
    torch.testing.assert_close(load_file(image)["image"], network.decode(mean), atol=1e-4, rtol=0)


def test_inspect_and_plan(run: Runner, vae: Path) -> None:
    found = json.loads(run("inspect", vae, "--json").out)
    assert (found["kind"], found["layout"], found["family"]) == ("WanVAE", "wan", "Qwen-Image")
    assert found["scaling_factor"] is None
    assert "scaling factor   one for each channel" in run("inspect", vae).out
    done = run("plan", "--vae", vae, "--width", "256", "--height", "192", "--device", "cpu")
    assert done.code == 0
    assert "tiled" in done.out


@pytest.mark.parametrize("says", ["FLUX.1", "Qwen-Image"])
def test_latents_of_another_family_are_a_question(says: str, run: Runner, vae: Path, tmp_path: Path) -> None:
    latents = tmp_path / "l.safetensors"
    save_file({"latents": torch.randn(1, 16, 5, 3)}, latents, {"family": says})
    done = run("decode", latents, "--vae", vae, "-o", tmp_path / "p.png", "--device", "cpu")
    sentence = (
        "vae_lib: The latents are FLUX.1's and qwen_image_vae.safetensors is the VAE of Qwen-Image: the picture would "
        "be wrong. Choose the VAE of FLUX.1. Say whose latents they are with --family FLUX.1 or Qwen-Image.\n"
    )
    assert (done.code, done.err) == ((1, sentence) if says == "FLUX.1" else (0, ""))


@pytest.mark.parametrize("option", ["--scaling-factor", "--shift-factor"])
def test_one_factor_for_all_channels_is_refused(option: str, run: Runner, vae: Path, tmp_path: Path) -> None:
    save_file({"latents": torch.randn(1, 16, 5, 3)}, tmp_path / "l.safetensors")
    done = run("decode", tmp_path / "l.safetensors", "--vae", vae, "-o", tmp_path / "p.png", option, "0.5")
    assert done.code == 1
    assert "are one number for all channels" in done.err


def test_a_route_without_a_plan(run: Runner, vae: Path) -> None:
    done = run("plan", "--vae", vae, "--width", "64", "--height", "64", "--device", "cpu", "--taesd", "--encode")
    assert "taesd    has no plan for this" in done.out


def test_latents_as_the_vae_gives_them(run: Runner, network: WanVAE, vae: Path, tmp_path: Path) -> None:
    latents, image = torch.randn(1, 16, 5, 3), tmp_path / "i.safetensors"
    save_file({"latents": latents}, tmp_path / "l.safetensors")
    done = run("decode", tmp_path / "l.safetensors", "--vae", vae, "--tensor", image, "--scaling-factor", "1")
    assert (done.code, done.err) == (0, "")
    torch.testing.assert_close(load_file(image)["image"], network.decode(latents), atol=1e-4, rtol=0)
