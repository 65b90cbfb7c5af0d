"""Latents on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vae_lib.checkpoints import check_finite, load_latents, save_safetensors
from vae_lib.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    latents = torch.randn(2, 4, 3, 5).to(dtype)
    save_safetensors({"latents": latents}, tmp_path / "x.safetensors", {"scaling_factor": "0.18215"})
    read, metadata = load_latents(tmp_path / "x.safetensors")
    assert read.dtype == dtype
    assert torch.equal(read, latents)
    assert metadata == {"scaling_factor": "0.18215"}


def test_fp8_latents_become_fp16(tmp_path: Path) -> None:
    save_safetensors({"latents": torch.ones(1, 4, 2, 2).to(torch.float8_e5m2)}, tmp_path / "x.safetensors")
    assert load_latents(tmp_path / "x.safetensors")[0].dtype == torch.float16


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"samples": torch.ones(1, 4, 2, 2)}, r"no tensor named 'latents' \(only 'samples'\)"),
        ({}, r"no tensor named 'latents' \(nothing\)"),
        ({"latents": torch.ones(4, 2, 2)}, r"shape \(4, 2, 2\); \(batch, channels, height, width\)"),
        ({"latents": torch.ones(1, 4, 0, 2)}, "are empty"),
        ({"latents": torch.ones(1, 4, 2, 2, dtype=torch.int64)}, "of type int64; floating-point"),
        ({"latents": torch.full((1, 4, 2, 2), float("nan"))}, r"16 NaN .* of 16.*UNet.*not the VAE"),
        ({"latents": torch.tensor([[[[1.0, float("inf")]]]])}, r"1 NaN or infinite numbers of 2"),
    ],
)
def test_latents_that_cannot_be_decoded(
    tensors: dict[str, torch.Tensor], sentence: str, tmp_path: Path
) -> None:
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
