"""Scratch files are gone when their bands are, on systems too that remove no file while it is mapped."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch

from tests.networks.small import CPU, FP32, SMALL, distance, latents_for, network
from vae_lib.engine import Compute, Tiling, decode, scratch
from vae_lib.engine.scratch import Scratch
from vae_lib.errors import PlanError

BAND = torch.zeros(1, 2, 3, 4)


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Files that are mapped cannot be removed. (Linux knows which those are.)"""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("imitated on Linux only")
    unlink = os.unlink

    def refuses_mapped(path: str, *, dir_fd: int | None = None) -> None:
        if any(
            line.endswith(f"/{os.path.basename(path)}") and str(tmp_path) in line
            for line in maps.read_text().splitlines()
        ):
            raise PermissionError(13, "The process cannot access the file because it is being used", path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(scratch, "REMOVES_MAPPED_FILES", False)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(os, "unlink", refuses_mapped)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(scratch, "_left_behind", [])
    return tmp_path


def files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_a_file_goes_with_its_band(as_on_windows: Path) -> None:
    store = Scratch()
    first, second = store.band(BAND), store.band(BAND)
    first.fill_(1)
    second.fill_(2)
    part = second[:, :, 1:]
    assert files(as_on_windows) == 2
    del first, second
    third = store.band(BAND)
    assert files(as_on_windows) == 2  # the part still maps the second
    assert float(part.sum()) == 2 * 16
    del part, third
    store.close()
    assert list(as_on_windows.iterdir()) == []


def test_a_decode_leaves_nothing_and_its_files_are_few(as_on_windows: Path) -> None:
    counts: list[int] = []
    latents = latents_for(SMALL, 6, 5)
    compute = Compute(CPU, FP32, progress=lambda *_: counts.append(files(as_on_windows)))
    picture = decode(network(), latents, Tiling(1 << 12, offload=True), compute)
    assert distance(picture, network().decode(latents)) < 1e-5
    assert max(counts) < len(counts) / 2
    assert list(as_on_windows.iterdir()) == []


def test_what_is_held_when_it_is_closed_goes_later(as_on_windows: Path) -> None:
    store = Scratch()
    band = store.band(BAND)
    store.close()
    assert files(as_on_windows) == 1
    Scratch().close()
    assert files(as_on_windows) == 1
    band.fill_(3)  # still there
    del band, store
    gc.collect()
    Scratch().close()
    assert list(as_on_windows.iterdir()) == []


def test_a_file_that_cannot_be_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to open file <1.bin> in read-write mode")

    store = Scratch(str(tmp_path))
    monkeypatch.setattr(torch, "from_file", fail)
    with pytest.raises(PlanError, match=r"could not be written .*unable to open file.*TMPDIR"):
        store.band(BAND)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_that_cannot_be_mapped_is_no_matter_of_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 96 bytes from file <1.bin>: Cannot allocate memory (12)")

    store = Scratch(str(tmp_path))
    monkeypatch.setattr(torch, "from_file", fail)
    with pytest.raises(RuntimeError, match="Cannot allocate memory"):
        store.band(BAND)
    store.close()
