"""Latents on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lib.catalog import FAMILIES, LatentSpace
from vae_lib.checkpoints import check_finite, identify, load_latents, save_safetensors, space_in
from vae_lib.errors import CheckpointError, InputError

FLUX1 = LatentSpace.of(FAMILIES["FLUX.1"], {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 3, 5).to(dtype)
    save_safetensors({"latents": latents}, tmp_path / "x.safetensors", {"scaling_factor": "0.18215"})
    read, metadata = load_latents(tmp_path / "x.safetensors")
    assert read.dtype == dtype
    assert torch.equal(read, latents)
    assert metadata == {"scaling_factor": "0.18215"}


@pytest.mark.parametrize("begin", [b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x80\x02\x01", b"PK"])
def test_headers_whose_length_begins_as_another_format_does(begin: bytes, tmp_path: Path) -> None:
    latents, path = torch.randn(1, 4, 2, 2), tmp_path / "x.safetensors"
    save_safetensors({"latents": latents}, path, {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    missing = (int.from_bytes(begin, "little") - length) % (1 << 8 * len(begin))
    save_safetensors({"latents": latents}, path, {"note": "a" * missing})
    assert path.read_bytes().startswith(begin)
    read, _ = load_latents(path)
    assert torch.equal(read, latents)


def test_fp8_latents_become_fp16(tmp_path: Path) -> None:
    save_safetensors({"latents": torch.ones(1, 4, 2, 2).to(torch.float8_e5m2)}, tmp_path / "x.safetensors")
    assert load_latents(tmp_path / "x.safetensors")[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"a": torch.ones(1, 4, 2, 2), "b": torch.ones(1)}, r"no tensor named 'latents' \(only 'a', 'b'\)"),
        ({}, r"no tensor named 'latents' \(nothing\)"),
        ({"latents": torch.ones(5, 2, 2)}, r"shape \(5, 2, 2\); \(batch, channels, height, width\)"),
        ({"latents": torch.ones(1, 4096, 64)}, "sequence of packed latents, unpack them"),
        ({"latents": torch.ones(1, 16, 3, 2, 2)}, "video's, decode them with"),
        ({"latents": torch.ones(1, 4, 0, 2)}, "are empty"),
        ({"latents": torch.ones(1, 4, 2, 2, dtype=torch.int64)}, "of type int64; floating-point"),
        ({"latents": torch.full((1, 4, 2, 2), float("nan"))}, r"16 NaN .* of 16.*UNet.*not the VAE"),
        ({"latents": torch.tensor([[[[1.0, float("inf")]]]])}, r"1 NaN or infinite numbers of 2"),
    ],
)
def test_latents_that_cannot_be_decoded(tensors: dict[str, torch.Tensor], sentence: str, tmp_path: Path) -> None:
    save_safetensors(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=sentence) as raised:
        load_latents(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        load_latents(tmp_path / "gone.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"<html>")
    with pytest.raises(InputError, match="web page"):
        load_latents(tmp_path / "x.safetensors")


def test_check_finite() -> None:
    check_finite(torch.zeros(2))
    with pytest.raises(InputError, match="The latents in the input hold 1 NaN"):
        check_finite(torch.tensor([1.0, float("nan")]))


LATENTS = torch.arange(2.0 * 4 * 3 * 5).reshape(2, 4, 3, 5)
OWN = {"scaling_factor": "1", "shift_factor": "0"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (LATENTS, LATENTS),
        (LATENTS[0], LATENTS[:1]),
        ([LATENTS[:1], LATENTS[1:]], LATENTS),
        ((LATENTS[0], LATENTS[1]), LATENTS),
        ({"latents": LATENTS, "step": 3}, LATENTS),
        ({"samples": LATENTS}, LATENTS),
        ({"samples": [LATENTS[0]]}, LATENTS[:1]),
        (LATENTS[:1].expand(3, -1, -1, -1), LATENTS[[0, 0, 0]]),
        (torch.nn.Parameter(LATENTS), LATENTS),
        (LATENTS.requires_grad_(False).half(), LATENTS.half()),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves(stored: object, expected: torch.Tensor, zipped: bool, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    read, metadata = load_latents(tmp_path / "x.pt")
    assert torch.equal(read, expected)
    assert not read.requires_grad
    assert metadata == {}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_numpy_arrays(dtype: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LATENTS.numpy().astype(dtype))
    assert torch.equal(load_latents(tmp_path / "x.npy")[0].float(), LATENTS)


@pytest.mark.parametrize("name", ["latents", "latents_3x5"])
def test_kohyas_cache(name: str, tmp_path: Path) -> None:
    others = {
        "original_size": np.array([40, 24]),
        "crop_ltrb": np.zeros(4),
        "latents_flipped": np.ones((4, 3, 5)),
    }
    np.savez(tmp_path / "x.npz", **{name: LATENTS[0].numpy()}, **others)
    latents, metadata = load_latents(tmp_path / "x.npz")
    assert torch.equal(latents, LATENTS[:1])
    assert metadata == OWN  # its scripts multiply when they train
    np.savez(tmp_path / "y.npz", **{name: np.ones((16, 3, 5))})
    assert load_latents(tmp_path / "y.npz")[1] == {}
    for suffix, space in (("sd3", LatentSpace(1.0)), ("flux", FLUX1), ("lumina", FLUX1)):
        path = tmp_path / f"img_0040x0024_{suffix}.npz"
        np.savez(path, **{name: np.ones((16, 3, 5))})
        found = space_in(load_latents(path)[1])
        assert found is not None
        assert found.same_as(space)


@pytest.mark.parametrize("version", [0, None])
def test_comfyuis_files(version: int | None, tmp_path: Path) -> None:
    """As its VAE gives them; the first ones, without a version, times SD1's factor."""
    stored = {"latent_tensor": LATENTS * (1.0 if version == 0 else 0.18215)}
    if version == 0:
        stored["latent_format_version_0"] = torch.tensor([])
    save_safetensors(stored, tmp_path / "x.latent", {"prompt": "{}"})
    latents, metadata = load_latents(tmp_path / "x.latent")
    torch.testing.assert_close(latents, LATENTS)
    assert metadata == {"prompt": "{}"} | OWN
    packed = {"latent_tensor": torch.ones(1, 128, 2, 2), "latent_format_version_0": torch.tensor([])}
    save_safetensors(packed, tmp_path / "flux2.latent")
    assert load_latents(tmp_path / "flux2.latent")[1] == {}


def test_other_files_are_told_for_what_they_are(vae_file: Path, tmp_path: Path) -> None:
    def told(name: str) -> str:
        with pytest.raises(InputError) as raised:
            load_latents(tmp_path / name)
        return str(raised.value)

    torch.save([LATENTS, LATENTS[:, :, :2]], tmp_path / "sizes.pt")
    assert "a list of latents of different shapes" in told("sizes.pt")
    torch.save([1, 2], tmp_path / "numbers.pt")
    assert "holds a Python list, not latents" in told("numbers.pt")
    torch.save(LATENTS[:1, :1].expand(2**20, 2**20, 3, 5), tmp_path / "huge.pt")
    assert "is damaged: the latents is not a plain tensor" in told("huge.pt")
    np.save(tmp_path / "whole.npy", np.ones((1, 4, 2, 2), dtype=np.int32))
    assert "type int32; floating-point" in told("whole.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "holds Python objects instead of numbers" in told("objects.npy")
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    assert "holds the arrays 'a', 'b'" in told("two.npz")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-5])
    assert "is damaged" in told("cut.npy")
    (tmp_path / "vae.safetensors").write_bytes(vae_file.read_bytes())
    assert told("vae.safetensors").startswith("vae.safetensors is a VAE, not latents")


@pytest.mark.parametrize("stored", [LATENTS, [LATENTS]])
def test_latents_in_the_place_of_a_vae(stored: object, tmp_path: Path) -> None:
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt holds .*: latents, perhaps, but not a VAE"):
        identify(tmp_path / "x.pt")


@pytest.mark.parametrize("factor", ["0", "0.0", "nan", "inf", "-inf", "much", ""])
def test_factors_that_cannot_be(factor: str) -> None:
    with pytest.raises(InputError, match=rf"have an invalid scaling factor in their metadata, '{factor}';"):
        space_in({"scaling_factor": factor}, "The latents")
    if factor not in ("0", "0.0"):
        with pytest.raises(InputError, match=rf"have an invalid shift factor in their metadata, '{factor}';"):
            space_in({"scaling_factor": "1", "shift_factor": factor}, "The latents")


def test_factors_of_a_file() -> None:
    assert space_in({}) is None
    for metadata, scale, shift in (
        ({"scaling_factor": "0.5"}, 0.5, 0.0),
        ({"scaling_factor": "0.5", "shift_factor": "-1"}, 0.5, -1.0),
        ({"vae_guard.family": "SDXL"}, 0.13025, 0.0),
        ({"family": "FLUX.1"}, 0.3611, 0.1159),
    ):
        space = space_in(metadata)
        assert space is not None
        assert (space.scale, space.shift) == (scale, shift)
    assert space_in({"family": "FLUX.2"}) is None  # its numbers are in the VAE's file
    with pytest.raises(InputError, match="an entry 'latent_space' in their metadata that cannot be read"):
        space_in({"latent_space": "{}"}, "The latents")
