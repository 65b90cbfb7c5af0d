"""Latents on disk while there is no picture of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vae_lib.checkpoints import save_safetensors, unfinished


def test_the_oldest_go_when_the_space_is_used_up(tmp_path: Path) -> None:
    latents = torch.zeros(1, 4, 250, 250)  # 1 MB
    written = []
    for index in range(4):
        written.append(unfinished.write(tmp_path, latents + index, "model", 0.5, ["text"], 3, (0.5, 0.0)))
    assert all(written)
    items, problems = unfinished.found(tmp_path)
    assert problems == []
    assert [item.latents.max().item() for item in items] == [3.0, 2.0]  # headers count, too
    assert items[0].infotexts == ["text"]
    assert (items[0].model_name, items[0].scale_factor) == ("model", 0.5)
    assert unfinished.write(tmp_path, torch.zeros(1, 4, 600, 600), "model", 0.5, [], 3, (0.5, 0.0)) is None
    assert unfinished.write(tmp_path, latents, "model", 0.5, [], 0, (0.5, 0.0)) is None
    assert len(unfinished.found(tmp_path)[0]) == 2


def test_files_that_cannot_be_read_are_told_and_odd_metadata_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / ".half.safetensors").write_bytes(b"")
    odd = {"infotexts": "7", "model_scale_factor": "x", "created": "yesterday"}
    save_safetensors({"latents": torch.zeros(1, 4, 8, 8)}, tmp_path / "odd.safetensors", odd)
    deep = {"infotexts": "[" * 100_000}
    save_safetensors({"latents": torch.zeros(1, 4, 8, 8)}, tmp_path / "deep.safetensors", deep)
    items, problems = unfinished.found(tmp_path)
    assert [(item.path.name, item.infotexts, item.scale_factor) for item in items] == [
        ("odd.safetensors", [], 0.0),
        ("deep.safetensors", [], 0.0),
    ]
    assert len(problems) == 1
    assert "broken.safetensors" in problems[0]


def test_a_folder_that_is_not_there_is_empty_and_one_that_is_closed_is_told(
    tmp_path: Path, closed: Path
) -> None:
    assert unfinished.found(tmp_path / "missing") == ([], [])
    items, (problem,) = unfinished.found(closed)
    assert items == []
    assert problem == f"The folder {closed} cannot be looked into: File name too long."


def test_old_files_that_cannot_be_removed_do_not_end_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(3):
        assert unfinished.write(tmp_path, torch.zeros(1, 4, 250, 250), "model", 0.5, [], 1, (0.5, 0.0))
    assert len(unfinished.found(tmp_path)[0]) == 3
