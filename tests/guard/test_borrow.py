"""TAESD on disk: found by the fallback exactly where the page says that it is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.networks import taehv
from tests.webui import weights
from vae_lib.catalog import FAMILIES
from vae_lib.checkpoints import load_vae, save_safetensors
from vae_lib.engine import Operation
from vae_lib.guard.borrow import TAESDFolder
from vae_lib.hub import has_taesd


def found(folder: Path, family: str) -> bool:
    taesd = TAESDFolder(folder, lambda key, sentence: None)
    halves = FAMILIES[family].taesd_halves
    return all(taesd.load(FAMILIES[family], each) is not None for each in Operation if each.half in halves)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_say_the_same(tmp_path: Path, suffix: str) -> None:
    assert not has_taesd(tmp_path, "SD1")
    assert not found(tmp_path, "SD1")
    weights.save_taesd(tmp_path)
    if suffix == ".safetensors":
        for path in (
            FAMILIES["SD1"].taesd_files(tmp_path, "encoder")[:1] + FAMILIES["SD1"].taesd_files(tmp_path, "decoder")[:1]
        ):
            half = path.stem.removeprefix("taesd_")
            tensors = {
                name.removeprefix(f"{half}."): tensor
                for name, tensor in load_vae(path, kind="TAESD").model.state_dict().items()
                if name.startswith(half)
            }
            save_safetensors(tensors, path.with_suffix(suffix))
            path.unlink()
    assert has_taesd(tmp_path, "SD1")
    assert found(tmp_path, "SD1")
    assert not has_taesd(tmp_path, "SDXL")
    assert not has_taesd(tmp_path, "FLUX.2")
    assert not found(tmp_path, "FLUX.2")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wans_is_one_file_and_only_decodes(tmp_path: Path, suffix: str) -> None:
    assert not has_taesd(tmp_path, "Qwen-Image")
    assert not found(tmp_path, "Qwen-Image")
    if suffix == ".pth":
        torch.save(taehv.weights(), tmp_path / "taew2_1.pth")
    else:
        save_safetensors(taehv.weights(), tmp_path / "taew2_1.safetensors")
    assert has_taesd(tmp_path, "Qwen-Image")
    assert found(tmp_path, "Qwen-Image")
    folder = TAESDFolder(tmp_path, lambda key, sentence: None)
    network = folder.load(FAMILIES["Qwen-Image"], Operation.DECODE)
    assert network is not None
    assert network.video
    assert folder.load(FAMILIES["Qwen-Image"], Operation.ENCODE) is None


def test_for_a_family_that_is_not_known_there_is_none(tmp_path: Path) -> None:
    weights.save_taesd(tmp_path)
    folder = TAESDFolder(tmp_path, lambda key, sentence: None)
    assert folder.load(FAMILIES["SD1"], Operation.DECODE) is not None
    assert folder.load(None, Operation.DECODE) is None
