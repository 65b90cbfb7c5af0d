"""Latents on disk while there is no picture of them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints import load_latents, save_safetensors, unfinished
from vae_lib.checkpoints.unfinished import Afterwards, Latents


def batch(value: float, side: int = 250, **more: Any) -> Latents:
    """1 MB of latents."""
    return Latents(torch.full((1, 4, side, side), value), LatentSpace(0.5, 0.25), "model", ["text"], **more)


def test_what_is_done_after_the_decode_comes_back_as_it_was(tmp_path: Path) -> None:
    photo = Image.effect_noise((24, 16), 60).convert("RGBA")
    correction = Image.effect_noise((8, 8), 60).convert("RGB")
    afterwards = Afterwards(
        {"paste_to": [1, 2, 3, 4], "seeds": [5], "s_tmax": float("inf"), "prompt": "ein Kätzchen"},
        {"overlay_images": [photo, photo], "color_corrections": [correction]},
        ["ADetailer"],
    )
    path = unfinished.write(tmp_path, batch(1.0, side=8, afterwards=afterwards), 1)
    assert path is not None
    found = unfinished.read(path).afterwards
    assert (found.values, found.not_repeated) == (afterwards.values, ["ADetailer"])
    first, second = found.images["overlay_images"]
    assert first is second
    assert (first.mode, first.tobytes()) == ("RGBA", photo.tobytes())
    assert found.images["color_corrections"][0].tobytes() == correction.tobytes()
    marked = unfinished.mark_approximate(path)
    assert (unfinished.is_approximate(path), unfinished.is_approximate(marked)) == (False, True)
    assert torch.equal(load_latents(marked)[0], torch.ones(1, 4, 8, 8))


def test_batches_of_one_tick_are_files_of_their_own_in_their_order(tmp_path: Path) -> None:
    """Windows' clock ticks every 15 ms."""
    moment = datetime.now(timezone.utc)
    for index in range(12):
        path = unfinished.write(tmp_path, batch(float(index), side=8, created=moment), 1)
        assert path is not None
        if index % 3 == 0:
            unfinished.mark_approximate(path)
    items, problems = unfinished.found(tmp_path)
    assert problems == []
    assert [item.tensor.max().item() for _, item in items] == [float(index) for index in reversed(range(12))]


def test_the_newest_stay_after_the_clock_was_set_back(tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    for index, hours in enumerate((0, -5, -4, -9)):
        assert unfinished.write(tmp_path, batch(float(index), created=now + timedelta(hours=hours)), 3)
    items, _ = unfinished.found(tmp_path)
    assert [item.tensor.max().item() for _, item in items] == [3.0, 2.0]
    (tmp_path / "20990101 mine.safetensors").touch()
    assert unfinished.write(tmp_path, batch(4.0), 9)
    assert unfinished.found(tmp_path)[0][0][1].tensor.max().item() == 4.0


def test_the_oldest_go_when_the_space_is_used_up(tmp_path: Path) -> None:
    written = [unfinished.write(tmp_path, batch(float(index)), 3) for index in range(4)]
    assert all(written)
    items, problems = unfinished.found(tmp_path)
    assert problems == []
    assert [item.tensor.max().item() for _, item in items] == [3.0, 2.0]  # headers count, too
    found = items[0][1]
    assert (found.infotexts, found.model_name) == (["text"], "model")
    assert (found.space.scale, found.space.shift) == (0.5, 0.25)
    assert unfinished.write(tmp_path, batch(0.0, side=600), 3) is None
    assert unfinished.write(tmp_path, batch(0.0), 0) is None
    assert len(unfinished.found(tmp_path)[0]) == 2


def test_files_that_cannot_be_read_are_told_and_odd_metadata_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    (tmp_path / ".half.safetensors").write_bytes(b"")
    odd = {"infotexts": "7", "scaling_factor": "x", "created": "yesterday", "afterwards": "[{}, 7, []]"}
    save_safetensors({"latents": torch.zeros(1, 4, 8, 8)}, tmp_path / "odd.safetensors", odd)
    deep = {"infotexts": "[" * 100_000}
    save_safetensors({"latents": torch.zeros(1, 4, 8, 8)}, tmp_path / "deep.safetensors", deep)
    items, problems = unfinished.found(tmp_path)
    assert [(path.name, item.infotexts, item.space.scale) for path, item in items] == [
        ("odd.safetensors", [], 1.0),
        ("deep.safetensors", [], 1.0),
    ]
    assert all(item.afterwards == Afterwards() for _, item in items)
    assert len(problems) == 1
    assert "broken.safetensors" in problems[0]


def test_a_folder_that_is_not_there_is_empty_and_one_that_is_closed_is_told(tmp_path: Path, closed: Path) -> None:
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
        assert unfinished.write(tmp_path, batch(0.0), 1)
    assert len(unfinished.found(tmp_path)[0]) == 3
