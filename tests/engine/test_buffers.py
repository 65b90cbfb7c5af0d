"""Where activations live: scratch buffers, stored bands, and the reader that sees rows before they change."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.networks.small import BF16, CPU, FP32
from vae_lib.engine.buffers import DeviceStore, HostStore, Memory, Workspace
from vae_lib.engine.maps import FeatureMap, RowReader
from vae_lib.errors import PlanError


def picture(*shape: int, value: float = 0.0) -> Tensor:
    """(1, channels, height, width), channels last."""
    return torch.full(shape, value).contiguous(memory_format=torch.channels_last)


def stored(rows: Tensor, band: int) -> FeatureMap:
    _, channels, height, width = rows.shape
    feature = FeatureMap(height, width, channels, DeviceStore())
    for first in range(0, height, band):
        feature.append(rows[:, :, first : first + band].clone())
    return feature


def test_workspace_serves_again_and_grows() -> None:
    workspace = Workspace(Memory(CPU, FP32))
    small = workspace.take("a", (2, 3), FP32)
    assert small.shape == (2, 3)
    assert workspace.take("a", (3, 2), FP32).data_ptr() == small.data_ptr()
    assert workspace.take("b", (2, 3), FP32).data_ptr() != small.data_ptr()
    assert workspace.take("a", (2, 3), BF16).dtype == BF16
    assert workspace.take("a", (5, 5), FP32).is_contiguous()
    band = workspace.band("a", (2, 3, 4), FP32)
    assert band.shape == (1, 2, 3, 4)
    assert band.is_contiguous(memory_format=torch.channels_last)
    assert workspace.band("a", (2, 3, 4), FP32) is band
    assert workspace.band("a", (4, 2, 3), FP32).data_ptr() == band.data_ptr()


@given(height=st.integers(1, 12), band=st.integers(1, 5), first=st.integers(0, 12), last=st.integers(0, 12))
def test_pieces_are_the_rows_asked_for(height: int, band: int, first: int, last: int) -> None:
    rows = torch.arange(height * 2.0).view(1, 1, height, 2)
    pieces = list(stored(rows, band).pieces(first, last))
    covered = [row + i for row, piece in pieces for i in range(piece.shape[2])]
    assert covered == list(range(first, min(last, height)))
    for row, piece in pieces:
        assert torch.equal(piece, rows[:, :, row : row + piece.shape[2]])


def test_release_frees_whole_bands_only() -> None:
    feature = stored(picture(1, 1, 6, 2), 2)
    feature.release(3)
    assert [row for row, _ in feature.pieces(0, 6)] == [2, 4]
    feature.release(6)
    assert list(feature.pieces(0, 6)) == []


def test_whole_tensor_is_written_in_place() -> None:
    out = picture(1, 1, 4, 2)
    feature = FeatureMap.of(out)
    feature.append(picture(1, 1, 3, 2, value=1.0))
    feature.append(picture(1, 1, 1, 2, value=2.0))
    assert out[0, 0, :, 0].tolist() == [1, 1, 1, 2]
    assert feature.picture is out
    assert not feature.surrender()


def test_rows_written_over_a_whole_band_take_its_place() -> None:
    feature = stored(picture(1, 1, 6, 2), 2)
    rows = picture(1, 1, 2, 2, value=3.0)
    feature.write(2, rows)
    assert [piece.data_ptr() for _, piece in feature.pieces(2, 4)] == [rows.data_ptr()]
    feature.write(3, picture(1, 1, 2, 2, value=5.0))  # across two bands: copied into them
    assert [float(piece[0, 0, 0, 0]) for _, piece in feature.pieces(0, 6)] == [0, 3, 5]
    assert rows[0, 0, :, 0].tolist() == [3, 5]


def test_a_map_of_one_band_can_be_given_up() -> None:
    feature = stored(picture(1, 1, 4, 2), 4)
    held = feature.picture
    assert held is not None
    assert feature.surrender()
    assert list(feature.pieces(0, 4)) == []
    feature.release(4)
    assert stored(picture(1, 1, 4, 2), 2).picture is None


@given(
    height=st.integers(1, 9),
    band=st.integers(1, 4),
    step=st.integers(1, 4),
    halo=st.integers(0, 4),
    wrap=st.booleans(),
    frees=st.booleans(),
)
def test_reader_sees_the_rows_as_they_were(
    height: int, band: int, step: int, halo: int, wrap: bool, frees: bool
) -> None:
    """Every window with its halo holds the original rows, though those passed are spoilt or freed at once."""
    rows = torch.arange(1.0, height + 1).view(1, 1, height, 1)
    source = stored(rows, band)
    reader = RowReader(source, halo, wrap, True, Memory(CPU, FP32))
    for first in range(0, height, step):
        last = min(first + step, height)
        seen = {
            row + i: float(piece[0, 0, i, 0])
            for row, piece in reader.window(first - halo, last + halo)
            for i in range(piece.shape[2])
        }
        wanted = range(first - halo, last + halo)
        if not wrap:
            wanted = range(max(wanted.start, 0), min(wanted.stop, height))
        assert seen == {row: row % height + 1.0 for row in wanted}
        reader.advance(last)
        if frees:
            source.release(last)
        else:
            for _, piece in source.pieces(first, last):
                piece.fill_(-1)


@pytest.mark.parametrize("dtype", [FP32, torch.float16, BF16], ids=str)
def test_host_store_keeps_bands_in_files(dtype: torch.dtype, tmp_path: Path) -> None:
    store = HostStore(CPU, str(tmp_path))
    bands = [picture(1, 3, 4, 5).normal_().to(dtype) for _ in range(3)]
    kept = [store.put(band) for band in bands]
    assert all(torch.equal(a, b) for a, b in zip(kept, bands, strict=True))
    assert kept[0].data_ptr() != bands[0].data_ptr()
    kept[0].add_(1)
    assert torch.equal(kept[0], bands[0] + 1)
    store.close()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(kept[1], bands[1])  # what is still held stays readable


def test_host_store_without_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Set TMPDIR to a folder"):
        HostStore(CPU, str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    HostStore(CPU).close()
    assert list(tmp_path.iterdir()) == []
