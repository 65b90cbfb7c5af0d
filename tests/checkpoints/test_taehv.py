"""TAEHV, the TAESD of video models: what is recognised, refused, and made of its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.networks import taehv
from vae_lib.catalog import FAMILIES
from vae_lib.catalog.files import KnownFile
from vae_lib.checkpoints import convert_to_ldm, identify, load_vae, save_safetensors
from vae_lib.checkpoints.taehv import shape_of
from vae_lib.errors import CheckpointError, UnknownVAE

WEIGHTS = taehv.weights()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(WEIGHTS, tmp_path / "taew2_1.pth")
    return tmp_path / "taew2_1.pth"


def saved(folder: Path, weights: dict[str, Tensor], name: str = "x") -> Path:
    save_safetensors(weights, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def test_its_picture_is_the_last_of_the_four_frames(path: Path) -> None:
    loaded = load_vae(path, dtype=torch.float64, kind="TAESD")
    assert loaded.tiny is not None
    latents = 2 * torch.randn(2, 16, 2, 3, dtype=torch.float64)
    *others, last = taehv.frames({key: value.double() for key, value in WEIGHTS.items()}, latents)
    assert min(float((other - last).abs().max()) for other in others) > 0.1
    torch.testing.assert_close(loaded.tiny.decode(latents), last * 2 - 1, atol=1e-10, rtol=0)
    assert not any(each.untyped_storage().nbytes() > each.nbytes for each in loaded.tiny.state_dict().values())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_it_is(prefix: str, tmp_path: Path) -> None:
    decoder = {prefix + key: value for key, value in WEIGHTS.items() if key.startswith("decoder")}
    identity = identify(saved(tmp_path, decoder, "taew2_1"))
    assert (identity.layout, identity.kind, identity.latent_channels) == ("taehv", "TAESD decoder", 16)
    assert (identity.scaling_factor, identity.shift_factor) == (1.0, 0.0)
    assert identity.is_taesd
    assert identity.guess is FAMILIES["Qwen-Image"]
    assert identity.parameters == sum(value.numel() for value in decoder.values())


def test_only_the_hash_or_the_name_tells_it_from_other_video_models(path: Path, tmp_path: Path) -> None:
    other = identify(saved(tmp_path, WEIGHTS, "taehv"))
    assert (other.family, other.guess, other.certainty) == (None, None, "ambiguous")
    assert "HunyuanVideo" in other.explanation
    known = identify(path, known=lambda sha256: KnownFile("TAEW", "Qwen-Image", "TAESD", sha256))
    assert (known.family, known.certainty) == (FAMILIES["Qwen-Image"], "hash")


def test_half_of_it_is_missing(tmp_path: Path) -> None:
    encoder = {key: value for key, value in WEIGHTS.items() if key.startswith("encoder")}
    with pytest.raises(CheckpointError, match=r"x\.safetensors holds only the encoder of a video model's TAESD"):
        load_vae(saved(tmp_path, encoder))


@pytest.mark.parametrize(("channels", "out"), [(48, 12), (32, 12), (128, 48)])
def test_another_models(channels: int, out: int, tmp_path: Path) -> None:
    """Those of Wan 2.2 5B, HunyuanVideo 1.5 and LTX-2."""
    with pytest.raises(UnknownVAE, match=rf"TAEHV of {channels} channels to {out}, not 16 to 3"):
        load_vae(saved(tmp_path, taehv.of_another_model(channels, out)))


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [
        ("decoder.22.bias", None, "incomplete VAE: 'decoder.22.bias' missing"),
        ("decoder.1.weight", None, "looks like a TAESD, but"),
        ("decoder.3.skip.weight", (256, 256, 1, 1), "it has 'decoder.3.skip.weight'"),
        (
            "decoder.3.conv.0.weight",
            (256, 511, 3, 3),
            r"'decoder.3.conv.0.weight' has shape \(256, 511, 3, 3\)",
        ),
        ("decoder.7.conv.weight", (512, 256, 1, 1), r"'decoder.6.weight' has shape \(512, 256, 1, 1\)"),
        ("decoder.15.conv.0.weight", (64,), r"has shape \(64,\)"),
        ("decoder.19.conv.weight", (129, 64, 1, 1), r"has shape \(129, 64, 1, 1\)"),
    ],
)
def test_damaged_ones(key: str, shape: tuple[int, ...] | None, said: str, tmp_path: Path) -> None:
    weights = {name: value for name, value in WEIGHTS.items() if name != key}
    if shape is not None:
        weights[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=said):
        load_vae(saved(tmp_path, weights))


@pytest.mark.parametrize("shape", [(), (0, 2, 3, 3), (2, 2), (1 << 62, 2, 3, 3), (2,) * 80])
def test_shapes_that_no_layer_has(shape: tuple[int, ...]) -> None:
    for key in ("decoder.15.conv.0.weight", "decoder.15.conv.0.bias", "decoder.18.weight"):
        assert shape_of(key, shape) == shape


def test_it_is_no_full_vae() -> None:
    with pytest.raises(CheckpointError, match="is a TAESD"):
        convert_to_ldm(WEIGHTS)
