"""What can be known to fail is told before the decode, and what fails all the same loses nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.networks import small, taehv
from tests.networks.small import weights_of
from tests.networks.wan_layouts import own_names
from vae_lib.cli import pictures, work
from vae_lib.decode import Ladder
from vae_lib.errors import InputError
from vae_lib.networks import AutoencoderKLConfig

from .conftest import VAE, Run

Runner = Callable[..., Run]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr(Ladder, "decode", work)
    monkeypatch.setattr(Ladder, "encode", work)


def refused(done: Run) -> str:
    assert done.code == 1, done.out
    assert done.err.count("\n") == 1
    return done.err


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("suffix", "shape", "said"),
    [
        (
            ".webp",
            (1, 2048),
            r"will be 16384x8, and WEBP files have at most 16383 pixels on a side; write out\.png",
        ),
        (".webp", (2048, 1), "will be 8x16384"),
        (".jpg", (1, 8192), "will be 65536x8, and JPEG files have at most 65535"),
        (".ico", (40, 40), "ICO files have at most 256"),
        (".xyz", (4, 4), "has no suffix of a picture format"),
        (".psd", (4, 4), "has no suffix of a picture format"),
    ],
)
def test_pictures_that_their_format_cannot_hold(
    suffix: str, shape: tuple[int, int], said: str, decode: Runner, tmp_path: Path
) -> None:
    save_file({"latents": torch.zeros(1, 4, *shape)}, tmp_path / "l.safetensors")
    out = tmp_path / f"out{suffix}"
    error = refused(decode(tmp_path / "l.safetensors", "-o", out))
    assert re.search(said, error), error


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("which", ["vae", "latents", "link", "tensor"])
def test_an_output_that_is_an_input_replaces_nothing(which: str, run: Runner, latents: Path, tmp_path: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes(VAE.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(vae)
    before = {path: path.read_bytes() for path in (vae, latents)}
    option = {"vae": ("-o", vae), "latents": ("--tensor", latents), "link": ("--tensor", tmp_path / "link.safetensors"),
              "tensor": ("-o", tmp_path / "x.png", "--tensor", tmp_path / "x.png")}[which]  # fmt: skip
    error = refused(run("decode", latents, "--vae", vae, "--device", "cpu", *option))
    assert ("one of the files that are read here" in error) == (which != "tensor")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("no_work")
def test_a_photograph_is_not_replaced_by_its_latents(run: Runner, tmp_path: Path) -> None:
    photo = tmp_path / "p.png"
    Image.new("RGB", (16, 16)).save(photo)
    assert "one of the files" in refused(run("encode", photo, "--vae", VAE, "-o", photo, "--device", "cpu"))
    with Image.open(photo) as picture:
        assert picture.size == (16, 16)


@pytest.mark.usefixtures("no_work")
def test_one_of_a_batch_may_be_an_input_too(decode: Runner, tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(2, 4, 4, 4)}, tmp_path / "x-2.safetensors")
    done = decode(tmp_path / "x-2.safetensors", "-o", tmp_path / "x.safetensors")
    assert "x-2.safetensors is one of the files" in refused(done)


@pytest.mark.usefixtures("no_work")
@pytest.mark.skipif(sys.platform != "linux", reason="a folder that nobody can write to, not even root")
def test_a_folder_that_cannot_be_written_to(decode: Runner, latents: Path) -> None:
    error = refused(decode(latents, "-o", "/proc/self/out.png"))
    assert "The folder /proc/" in error
    assert "cannot be written to" in error


def taesd(path: Path, channels: int, **halves: bool) -> Path:
    save_file(weights_of(small.taesd(channels, **halves)), path)
    return path


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("route", ["auto", "taesd"])
def test_a_taesd_that_cannot_decode(route: str, decode: Runner, latents: Path, tmp_path: Path) -> None:
    half = taesd(tmp_path / "half.safetensors", 4, decoder=False)
    options = ("-o", tmp_path / "x.png", "--route", route, "--taesd")
    error = refused(decode(latents, *options, half))
    assert "half.safetensors holds only an encoder, so it cannot decode" in error
    error = refused(decode(latents, *options, taesd(tmp_path / "other.safetensors", 16)))
    assert re.search("(takes latents of 16|takes 16)", error), error


@pytest.mark.usefixtures("no_work")
def test_a_taesd_of_other_latents_of_so_many_channels(run: Runner, tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(1, 16, 2, 2)}, tmp_path / "l.safetensors")
    save_file(own_names(weights_of(small.network(replace(small.WAN, z_channels=16)))), tmp_path / "wan.safetensors")
    sd3 = small.sd3_like(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    save_file(weights_of(small.network(sd3)), tmp_path / "sd3.safetensors")
    save_file(taehv.weights(), tmp_path / "taew2_1.safetensors")
    taesd(tmp_path / "taesd3.safetensors", 16)
    for vae, tiny in (("wan", "taesd3"), ("sd3", "taew2_1")):
        done = run(
            "decode", tmp_path / "l.safetensors", "--vae", tmp_path / f"{vae}.safetensors",
            "--taesd", tmp_path / f"{tiny}.safetensors", "-o", tmp_path / "x.png", "--device", "cpu",
        )  # fmt: skip
        assert f"{tiny}.safetensors takes other latents than those of {vae}.safetensors" in refused(done)


@pytest.mark.usefixtures("no_work")
def test_half_a_vae_cannot_decode(run: Runner, latents: Path, tmp_path: Path) -> None:
    mine = {key: value for key, value in load_file(VAE).items() if key.startswith(("encoder.", "quant_conv."))}
    save_file(mine, tmp_path / "half.safetensors")
    done = run("decode", latents, "--vae", tmp_path / "half.safetensors", "-o", tmp_path / "x.png", "--device", "cpu")
    assert "holds only an encoder, so it cannot decode" in refused(done)


def vae_of(path: Path, out_channels: int) -> Path:
    config = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, in_channels=out_channels,
                                 out_channels=out_channels)  # fmt: skip
    save_file(weights_of(small.network(config)), path, {"scaling_factor": "0.18215"})
    return path


def test_a_vae_with_transparency_writes_its_alpha(run: Runner, latents: Path, tmp_path: Path) -> None:
    vae = vae_of(tmp_path / "rgba.safetensors", 4)
    tensor = tmp_path / "i.safetensors"
    done = run("decode", latents, "--vae", vae, "-o", tmp_path / "x.png", "--tensor", tensor, "--device", "cpu")
    assert done.code == 0, done.err
    wanted = load_file(tensor)["image"][0].clamp(-1, 1).add(1).mul(127.5).round()
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.mode == "RGBA"
        found = torch.tensor(list(picture.getdata())).view(72, 56, 4).permute(2, 0, 1)
    assert torch.equal(found, wanted.to(found.dtype))
    back = tmp_path / "back.safetensors"
    assert run("encode", tmp_path / "x.png", "--vae", vae, "-o", back, "--device", "cpu").code == 0


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("channels", "name", "said"),
    [
        (4, "x.jpg", "JPEG files cannot hold a picture with transparency"),
        (5, "x.png", "pictures of 5 channels"),
    ],
)
def test_pictures_of_other_channels(
    channels: int, name: str, said: str, run: Runner, latents: Path, tmp_path: Path
) -> None:
    vae = vae_of(tmp_path / "vae.safetensors", channels)
    assert said in refused(run("decode", latents, "--vae", vae, "-o", tmp_path / name, "--device", "cpu"))


def test_what_was_computed_survives_a_disk_that_fills_up(
    decode: Runner, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "check_picture", lambda *_: None)
        patch.setattr(work, "check_picture", lambda *_: None)
        patch.setattr(Image.Image, "save", full)
        out, tensor = tmp_path / "x.png", tmp_path / "i.safetensors"
        error = refused(decode(latents, "-o", out, "--tensor", tensor))
    assert f"{out} was not written: the disk is full" in error
    assert f"What was written is in {tensor}. The latents are untouched in {latents}." in error
    assert load_file(tensor)["image"].shape == (1, 3, 72, 56)


def test_latents_that_cannot_be_written_are_kept_elsewhere(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, out = work.save_safetensors, tmp_path / "l.safetensors"

    def full(tensors: object, path: Path, *rest: object) -> None:
        if path == out:
            raise InputError(f"{path} was not written: the disk is full.")
        save(tensors, path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "save_safetensors", full)
    Image.new("RGB", (64, 48)).save(tmp_path / "in.png")
    error = refused(run("encode", tmp_path / "in.png", "--vae", VAE, "-o", out, "--device", "cpu", "--route", "full"))
    kept = Path(error.partition("kept in ")[2].removesuffix(" instead.\n"))
    try:
        assert load_file(kept)["latents"].shape[1] == 4
    finally:
        kept.unlink()
        kept.parent.rmdir()


INFOTEXT = "a cat, ünïcode 🐈\nSteps: 2, Sampler: Euler a"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
def test_the_infotext_is_where_the_webui_looks_for_it(suffix: str, decode: Runner, tmp_path: Path) -> None:
    Image.init()
    if suffix not in Image.EXTENSION:
        pytest.skip("this Pillow writes no AVIF")
    save_file({"latents": torch.zeros(1, 4, 4, 4)}, tmp_path / "l.safetensors", {"parameters": INFOTEXT})
    out = tmp_path / f"x{suffix}"
    assert decode(tmp_path / "l.safetensors", "-o", out).code == 0
    with Image.open(out) as picture:
        if suffix == ".png":
            assert picture.info["parameters"] == INFOTEXT
            return
        comment = picture.getexif().get_ifd(0x8769)[0x9286]  # as piexif's UserComment.load reads it
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == INFOTEXT


def test_an_infotext_that_a_jpeg_has_no_room_for(decode: Runner, tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(1, 4, 4, 4)}, tmp_path / "l.safetensors", {"parameters": "x" * 40_000})
    done = decode(tmp_path / "l.safetensors", "-o", tmp_path / "x.jpg")
    assert done.code == 0
    assert "the infotext is too long for a JPEG file and was left out" in done.err
