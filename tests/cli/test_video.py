"""A video's latents on the command line: to frames, to one file, and what is refused before the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.networks.small import FP32, WAN, network, weights_of
from tests.networks.videos import WAN21, published
from tests.networks.wan_layouts import names_of_2d
from vae_lib.catalog import FAMILIES, LatentSpace
from vae_lib.guard.kept_videos import KeptVideos

from .conftest import VAE, Run

Runner = Callable[..., Run]
FAMILY = FAMILIES["Qwen-Image"]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return published({**WAN21, "z_dim": 16}, FP32)[0]


@pytest.fixture
def vae(theirs: Any, tmp_path: Path) -> Path:
    save_file(theirs.state_dict(), tmp_path / "wan_2.1_vae.safetensors")
    return tmp_path / "wan_2.1_vae.safetensors"


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    torch.manual_seed(6)
    save_file({"latents": torch.randn(1, 16, 3, 4, 5)}, tmp_path / "l.safetensors")
    return tmp_path / "l.safetensors"


def wanted(theirs: Any, latents: Path) -> torch.Tensor:
    """(T, 3, H, W)"""
    mean, deviation = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (FAMILY.mean, FAMILY.deviation))
    with torch.no_grad():
        return theirs.decode(load_file(latents)["latents"] * deviation + mean).sample[0].transpose(0, 1)


@pytest.mark.parametrize("route", ["auto", "tiled", "offload"])
def test_frames(run: Runner, theirs: Any, vae: Path, latents: Path, tmp_path: Path, route: str) -> None:
    image, out = tmp_path / "i.safetensors", tmp_path / "frame.png"
    options = ("--vae", vae, "--device", "cpu", "--route", route, "-o", out, "--tensor", image)
    done = run("decode", latents, *options)
    assert (done.code, done.err) == (0, "")
    assert f"{out.with_stem('frame-1')} to i.safetensors (10 files)" in done.out
    frames = wanted(theirs, latents)
    torch.testing.assert_close(load_file(image)["image"].clamp(-1, 1), frames, atol=1e-5, rtol=0)
    for number, frame in enumerate(frames, 1):
        with Image.open(tmp_path / f"frame-{number}.png") as picture:
            assert picture.size == (40, 32)
            pixels = torch.tensor(list(picture.getdata())).view(32, 40, 3).permute(2, 0, 1)
        torch.testing.assert_close(pixels / 127.5 - 1, frame, atol=0.5 / 127.5 + 1e-4, rtol=0)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_one_file(run: Runner, theirs: Any, vae: Path, latents: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"v{suffix}"
    done = run("decode", latents, "--vae", vae, "-o", out, "--fps", "8", "--device", "cpu", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["files"] == [str(out)]
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 8
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 9
    pixels = wanted(theirs, latents).permute(0, 2, 3, 1).add(1).mul(127.5)
    assert (torch.stack(frames).float() - pixels).abs().mean() < 12  # compressed, colours of four pixels as one


def test_what_a_webui_could_not_decode(run: Runner, theirs: Any, vae: Path, latents: Path, tmp_path: Path) -> None:
    """Its file says of itself whose latents they are."""
    said: list[str] = []
    host: Any = SimpleNamespace(space=LatentSpace.of(FAMILY, {}), model_name="wan")
    notices: Any = SimpleNamespace(
        tell=lambda text, warning: said.append(text), tell_once=lambda key, text: said.append(text)
    )
    kept = KeptVideos(tmp_path, notices)
    kept.restore()
    video = load_file(latents)["latents"]
    assert kept.hold(host, video, disk_mb=0) is None
    assert kept.hold(host, torch.randn(1, 16, 3, 200, 200), disk_mb=1) is None
    path = kept.hold(host, video, disk_mb=16)
    assert path is not None
    assert str(path) in kept.failed(path)
    kept.restore()
    assert [text.split(" ", 4)[:4] for text in said] == [
        ["the", "video's", "latents", "take"], ["the", "video", "could", "not"], ["a", "video", "is", "not"],
    ]  # fmt: skip
    image = tmp_path / "i.safetensors"
    done = run("decode", path, "--vae", vae, "--device", "cpu", "--tensor", image)
    assert (done.code, done.err) == (0, "")
    torch.testing.assert_close(load_file(image)["image"].clamp(-1, 1), wanted(theirs, latents), atol=1e-5, rtol=0)
    kept.finished(path)
    assert not path.exists()


def refused(done: Run) -> str:
    assert done.code == 1
    assert "Traceback" not in done.err
    return done.err


def test_what_has_no_videos(run: Runner, latents: Path, tmp_path: Path) -> None:
    flat = tmp_path / "qwen2d.safetensors"
    save_file(names_of_2d(weights_of(network(WAN)), WAN), flat)
    assert "holds only the weights for single pictures" in refused(run("decode", latents, "--vae", flat, "-o", "f.png"))
    assert "is a VAE of pictures" in refused(run("decode", latents, "--vae", VAE, "-o", "f.png"))


def test_what_is_refused(
    run: Runner, vae: Path, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ("--taesd", vae)
    assert "TAESD decodes pictures" in refused(run("decode", latents, "--vae", vae, *tiny, "-o", "f.png"))
    two = tmp_path / "two.safetensors"
    save_file({"latents": torch.randn(2, 16, 3, 2, 2)}, two)
    assert "the latents of 2 videos" in refused(run("decode", two, "--vae", vae, "-o", "f.png"))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install av" in refused(run("decode", latents, "--vae", vae, "-o", tmp_path / "v.mp4"))


def test_plan(run: Runner, vae: Path) -> None:
    size = ("plan", "--vae", vae, "--width", "128", "--height", "96", "--device", "cuda", "--dtype", "bf16")
    done = run(*size, "--frames", "81", "--free", "8GB")
    assert "decode 81 frames of 128x96" in done.out
    few, many = (
        json.loads(run(*size, "--frames", frames, "--free", "8GB", "--json").out)["routes"] for frames in ("5", "81")
    )
    assert all(a["seconds"] < b["seconds"] for a, b in zip(few, many, strict=True) if a["exact"])
    assert "the nearest numbers are 77 and 81" in refused(run(*size, "--frames", "80"))
