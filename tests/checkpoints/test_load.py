"""From files of every layout to networks with the same weights, and refusals of what is no VAE of ours."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE
from diffusers import AutoencoderTiny

from vae_lib.checkpoints import load_vae, save_safetensors
from vae_lib.checkpoints.safetensors_file import SafetensorsFile
from vae_lib.errors import CheckpointError
from vae_lib.networks import TAESD, AutoencoderKL

Weights = dict[str, torch.Tensor]


def assert_loaded(model: torch.nn.Module, expected: Weights) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


EXTRAS = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4),
    "loss.logvar": torch.zeros(()),
    "model_ema.decay": torch.zeros(()),
    "model_ema.num_updates": torch.zeros((), dtype=torch.int32),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".vae.pt", ".ckpt", ".pth", ".bin", ".legacy.ckpt"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_every_container_and_prefix(suffix: str, prefix: str, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    stored = {prefix + key: value for key, value in weights.items()} | EXTRAS
    if suffix == ".safetensors":
        save_safetensors(stored, path)
    else:
        torch.save({"state_dict": stored}, path, _use_new_zipfile_serialization="legacy" not in suffix)
    loaded = load_vae(path)
    assert isinstance(loaded.model, AutoencoderKL)
    assert_loaded(loaded.model, weights)
    assert loaded.identity.layout == ("ldm in a checkpoint" if prefix else "ldm")
    assert loaded.identity.parameters == sum(value.numel() for value in weights.values())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "ema_model.", "model.", "module._orig_mod.", "generator.", "net."]
)
def test_what_wrappers_put_before_the_keys(prefix: str, weights: Weights, tmp_path: Path) -> None:
    save_safetensors({prefix + key: value for key, value in weights.items()}, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert_loaded(loaded.model, weights)
    assert loaded.identity.layout == "ldm"


@pytest.mark.parametrize("prefix", ["model.vae.", "model.first_stage_model.", "autoencoder."])
def test_what_checkpoints_put_before_the_keys(prefix: str, weights: Weights, tmp_path: Path) -> None:
    save_safetensors({prefix + key: value for key, value in weights.items()} | EXTRAS, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert_loaded(loaded.model, weights)
    assert loaded.identity.layout == "ldm in a checkpoint"
    assert loaded.identity.candidates


def test_only_the_vae_is_read_of_a_checkpoint(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    stored = {"first_stage_model." + key: value for key, value in weights.items()}
    save_safetensors(stored | EXTRAS, path)
    names: list[str] = []
    read = SafetensorsFile.read

    def spy(self: SafetensorsFile, name: str) -> torch.Tensor:
        names.append(name)
        return read(self, name)

    monkeypatch.setattr(SafetensorsFile, "read", spy)
    load_vae(path)
    assert set(names) == stored.keys()


def test_a_vae_saved_by_diffusers(tmp_path: Path) -> None:
    theirs = ReferenceVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        scaling_factor=0.13025,
    ).requires_grad_(False)
    theirs.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path / "diffusion_pytorch_model.safetensors")
    assert loaded.identity.layout == "diffusers"
    assert loaded.identity.family_name == "SDXL"
    latents = torch.randn(1, 4, 4, 6)
    torch.testing.assert_close(loaded.model.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_taesd_saved_by_diffusers(channels: int, tmp_path: Path) -> None:
    theirs = AutoencoderTiny(latent_channels=channels).requires_grad_(False)
    theirs.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path / "diffusion_pytorch_model.safetensors", kind="TAESD")
    assert loaded.identity.layout == "taesd (diffusers)"
    assert loaded.identity.kind == "TAESD"
    assert loaded.identity.latent_channels == channels
    latents, image = torch.randn(1, channels, 4, 6), torch.rand(1, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(loaded.model.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded.model.encode(image), theirs.encode(image).latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_published_taesd_file(half: str, suffix: str, taesd_weights: Weights, tmp_path: Path) -> None:
    mine = {key: value for key, value in taesd_weights.items() if key.startswith(half)}
    bare = {key.removeprefix(f"{half}."): value for key, value in mine.items()}
    path = tmp_path / f"taesd_{half}{suffix}"
    if suffix == ".pth":
        torch.save(bare, path)
    else:
        save_safetensors(bare, path)
    loaded = load_vae(path)
    assert isinstance(loaded.model, TAESD)
    assert_loaded(loaded.model, mine)
    assert loaded.identity.kind == f"TAESD {half}"
    assert loaded.identity.layout == "taesd"
    assert (loaded.identity.scaling_factor, loaded.identity.shift_factor) == (1.0, 0.0)


def test_a_full_vae_and_a_taesd_are_not_taken_for_each_other(
    vae_file: Path, taesd_weights: Weights, tmp_path: Path
) -> None:
    save_safetensors(taesd_weights, tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match=r"tiny\.safetensors is a TAESD.*a full VAE is wanted"):
        load_vae(tmp_path / "tiny.safetensors", kind="VAE")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors is a full VAE; a TAESD.* is wanted"):
        load_vae(vae_file, kind="TAESD")


@pytest.mark.parametrize("half", ["encoder.", "decoder."])
def test_half_a_vae(half: str, weights: Weights, tmp_path: Path) -> None:
    quant = "quant_conv" if half == "encoder." else "post_quant_conv"
    mine = {key: value for key, value in weights.items() if key.startswith((half, quant))}
    save_safetensors(mine, tmp_path / "half.safetensors")
    assert_loaded(load_vae(tmp_path / "half.safetensors").model, mine)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [None, torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(stored: torch.dtype, wanted: torch.dtype | None, weights: Weights, tmp_path: Path) -> None:
    kept = {key: value.to(stored) for key, value in weights.items()}
    save_safetensors(kept, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors", dtype=wanted)
    expected = wanted or (torch.float32 if stored == torch.float64 else stored)
    assert loaded.identity.dtype == str(stored).removeprefix("torch.")
    assert_loaded(loaded.model, {key: value.to(expected) for key, value in kept.items()})


def test_mixed_dtypes_become_the_widest(weights: Weights, tmp_path: Path) -> None:
    mixed = {key: value.half() if value.ndim == 4 else value for key, value in weights.items()}
    save_safetensors(mixed, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert loaded.identity.dtype == "float16, float32"
    assert_loaded(loaded.model, {key: value.float() for key, value in mixed.items()})


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_becomes_fp16_without_loss(name: str, weights: Weights, tmp_path: Path) -> None:
    small = {key: value.to(getattr(torch, name)) for key, value in weights.items()}
    save_safetensors(small, tmp_path / "x.safetensors")
    loaded = load_vae(tmp_path / "x.safetensors")
    assert_loaded(loaded.model, {key: value.to(torch.float16) for key, value in small.items()})
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value.float(), small[key].float())


def test_integer_weights_are_refused(weights: Weights, tmp_path: Path) -> None:
    save_safetensors({key: value.to(torch.int8) for key, value in weights.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="stores its weights as int8, which cannot be used"):
        load_vae(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_are_not_finite(value: float, dtype: torch.dtype, weights: Weights, tmp_path: Path) -> None:
    spoilt = {key: tensor.to(dtype, copy=True) for key, tensor in weights.items()}
    spoilt["decoder.up.0.block.1.conv1.weight"][3, 2, 1, 0] = value
    save_safetensors(spoilt, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'decoder\.up\.0\.block\.1\.conv1\.weight' holds NaN or inf"):
        load_vae(tmp_path / "x.safetensors")


def test_weights_too_large_for_the_wanted_dtype(weights: Weights, tmp_path: Path) -> None:
    large = weights | {"decoder.conv_out.bias": torch.tensor([1e6, 0, 0])}
    save_safetensors(large, tmp_path / "x.safetensors")
    assert_loaded(load_vae(tmp_path / "x.safetensors").model, large)
    with pytest.raises(CheckpointError, match=r"too large for float16 \('decoder\.conv_out\.bias'\)"):
        load_vae(tmp_path / "x.safetensors", dtype=torch.float16)


@pytest.mark.parametrize(
    ("drop", "add", "sentence"),
    [
        (["decoder.norm_out.bias"], {}, r"incomplete VAE: 'decoder\.norm_out\.bias' missing"),
        (
            ["encoder.norm_out.bias", "encoder.norm_out.weight", "quant_conv.bias", "decoder.norm_out.bias"],
            {},
            "incomplete VAE: .*, .*, .* and 1 more missing",
        ),
        (["decoder.conv_in.weight"], {}, r"bad\.safetensors: This VAE is incomplete: 'decoder\.conv_in"),
        ([], {"decoder.extra.weight": (3,)}, r"unknown kind: it has 'decoder\.extra\.weight'"),
        ([], {"decoder.norm_out.bias": (33,)}, r"'decoder\.norm_out\.bias' has shape \(33,\) where \(32,\)"),
        ([], {"encoder.conv_in.weight": (32, 3, 3, 3, 3)}, "video VAE"),
    ],
)
def test_missing_extra_and_wrong_tensors_are_named(
    drop: list[str], add: dict[str, tuple[int, ...]], sentence: str, weights: Weights, tmp_path: Path
) -> None:
    changed = {key: value for key, value in weights.items() if key not in drop}
    changed |= {key: torch.zeros(shape) for key, shape in add.items()}
    save_safetensors(changed, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        load_vae(tmp_path / "bad.safetensors")


def test_a_huge_dimension_is_refused_before_anything_is_allocated(weights: Weights, tmp_path: Path) -> None:
    """In safetensors by sizes of 0, in a pickle by strides of 0: both say 2^31 channels in no bytes."""
    header: dict[str, Any] = {}
    huge: Weights = {}
    for key, value in weights.items():
        rest = value.shape[1:]
        header[key] = {"dtype": "F32", "shape": [0, *rest], "data_offsets": [0, 0]}
        huge[key] = torch.zeros(1).expand(2**31 if value.ndim == 4 else 64, *rest)
    header["decoder.conv_in.weight"]["shape"] = [2**31, 2**31, 3, 0]
    text = json.dumps(header).encode()
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    torch.save(huge, tmp_path / "huge.pt")
    for name in ("huge.safetensors", "huge.pt"):
        with pytest.raises(CheckpointError, match="huge"):
            load_vae(tmp_path / name)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["lora_unet_mid_block.lora_up.weight"], "a LoRA"),
        (["text_model.embeddings.token_embedding.weight"], "a text encoder"),
        (["model.diffusion_model.out.0.weight"], "a diffusion model without its VAE"),
        (["emb_params"], "a textual inversion embedding"),
        (["latents"], "a file of latents"),
        (["control_model.input_hint_block.0.weight"], "a ControlNet"),
        (["what.is.this"], r"something unknown \(tensors 'what\.is\.this'\)"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_other_models_are_named(keys: list[str], what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"other{suffix}"
    stored = dict.fromkeys(keys, torch.zeros(2))
    if suffix == ".pt":
        torch.save(stored, path)
    else:
        save_safetensors(stored, path)
    with pytest.raises(CheckpointError, match=rf"other\{suffix} is {what}, not a VAE"):
        load_vae(path)


def test_an_incomplete_taesd(taesd_weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors({k: v for k, v in taesd_weights.items() if k != "decoder.19.weight"}, path)
    with pytest.raises(CheckpointError, match=r"'decoder\.19\.weight' missing"):
        load_vae(path)
    save_safetensors({"3.conv.0.weight": torch.zeros(1), "1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="looks like a TAESD, but"):
        load_vae(path)
    # a later TAESD with layers that ours has not
    save_safetensors(taesd_weights | {"decoder.3.pool.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown kind: it has 'decoder\.3\.pool"):
        load_vae(path)
