"""The safetensors reader: the same tensors as the reference implementation's, damage ends in a sentence."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lib.checkpoints import open_weights, read_header
from vae_lib.checkpoints.safetensors_file import SafetensorsFile
from vae_lib.errors import CheckpointError

TENSORS = {
    "float32": torch.tensor([[1.5, -2.0, float("inf")]]),
    "float16": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "bfloat16": torch.arange(5, dtype=torch.bfloat16),
    "float64": torch.tensor(0.1, dtype=torch.float64),
    "int64": torch.tensor([-(2**40)]),
    "uint8": torch.tensor([255], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "nothing": torch.empty(0, 3),
}


def file_with(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    safetensors.torch.save_file(TENSORS, str(path), {"title": "ä test"})
    return path.read_bytes()


def test_the_same_tensors_as_the_reference_implementation(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    with open_weights(path) as file:
        assert file.header.format == "safetensors"
        assert file.header.metadata == {"title": "ä test"}
        assert file.header.file_size == len(good)
        for name, tensor in safetensors.torch.load_file(str(path)).items():
            read = file.read(name)
            assert read.dtype == tensor.dtype
            assert read.shape == tensor.shape
            assert torch.equal(read, tensor)
            info = file.header.tensors[name]
            assert (info.dtype, info.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_is_read_where_torch_has_it(name: str, tmp_path: Path) -> None:
    values = torch.tensor([0.5, -3.0]).to(getattr(torch, name))
    path = tmp_path / "fp8.safetensors"
    safetensors.torch.save_file({"x": values}, str(path))
    with open_weights(path) as file:
        assert file.header.tensors["x"].dtype == name
        assert file.read("x").float().tolist() == [0.5, -3.0]


def test_the_file_may_go_away_after_reading(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    with open_weights(path) as file:
        tensor = file.read("float16")
    path.write_bytes(b"")
    assert torch.equal(tensor, TENSORS["float16"])
    tensor += 1  # memory of its own


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(100_000)}, str(path))
    with open_weights(path) as file:
        with path.open("rb+") as other:
            other.truncate(200_000)
        with pytest.raises(CheckpointError, match="became shorter"):
            file.read("x")


def test_a_dtype_that_torch_lacks_only_matters_when_it_is_read(tmp_path: Path) -> None:
    header = {"vae": entry(), "unet": entry("F4_FUTURE", [2**40], [8, 9])}
    path = file_with(tmp_path / "mixed.safetensors", header, bytes(9))
    with open_weights(path) as file:
        assert file.read("vae").tolist() == [0, 0]
        with pytest.raises(CheckpointError, match="stores 'unet' as F4_FUTURE, which this version of PyTorch"):
            file.read("unet")


@given(data=st.data())
def test_cut_short_anywhere_is_told_in_a_sentence(
    data: st.DataObject, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = data.draw(st.integers(0, len(good) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(good[:size])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors .*(cut short|empty|no readable header|cannot)"):
        read_header(path)


@given(data=st.binary(max_size=300))
def test_random_bytes_are_told_in_a_sentence(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("noise.safetensors", "noise.ckpt"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"noise\."):
            read_header(path)


@given(data=st.data())
def test_a_changed_header_is_told_in_a_sentence_or_is_still_sound(
    data: st.DataObject, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes of the header are overwritten: reading gives a sentence or tensors of the shapes announced."""
    length = struct.unpack("<Q", good[:8])[0]
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 8 + length - 1))
        changed[at] = data.draw(st.one_of(st.sampled_from(b'0123456789{}[]",:- '), st.integers(0, 255)))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(changed)
    with contextlib.suppress(CheckpointError), open_weights(path) as file:
        for name, info in file.header.tensors.items():
            assert tuple(file.read(name).shape) == info.shape


_numbers = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**63, 2**64, 1.0, True, None, "8"]))
_entries = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["F32", "F16", "U8", "XYZ", ""]), st.none(), st.integers()),
        "shape": st.one_of(st.lists(_numbers, max_size=4), _numbers),
        "data_offsets": st.one_of(st.lists(_numbers, min_size=2, max_size=2), st.lists(_numbers), _numbers),
    },
    optional={"more": st.none()},
)


@given(
    header=st.dictionaries(st.text(max_size=5), st.one_of(_entries, _numbers, st.lists(_numbers)), max_size=3),
    size=st.integers(0, 20),
)
def test_any_header_is_sound_or_told_in_a_sentence(
    header: dict[str, Any], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = file_with(tmp_path_factory.getbasetemp() / "any.safetensors", header, bytes(size))
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    with file:
        ends = [sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())]
        assert ends == [size]  # every byte belongs to one tensor


@pytest.mark.parametrize(
    ("header", "data", "sentence"),
    [
        ({"a": entry(shape=[2**31, 2**31])}, bytes(8), "does not have the bytes of its shape"),
        ({"a": entry(shape=[2**31, 2**31], offsets=[0, 2**64])}, bytes(8), "makes no sense"),
        ({"a": entry(shape=[2**31, 2**29], offsets=[0, 2**62])}, bytes(8), "cut short"),
        ({"a": entry(shape=[1] * 1000)}, bytes(8), "makes no sense"),
        ({"a": entry(shape=[-2])}, bytes(8), "makes no sense"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "makes no sense"),
        ({"a": entry(shape=[2.0])}, bytes(8), "makes no sense"),
        ({"a": entry(shape="22")}, bytes(8), "makes no sense"),
        ({"a": entry(offsets=[8, 0])}, bytes(8), "makes no sense"),
        ({"a": entry(offsets=[0])}, bytes(8), "makes no sense"),
        ({"a": entry(dtype=None)}, bytes(8), "makes no sense"),
        ({"a": entry(dtype="F32\n")}, bytes(8), "makes no sense"),
        ({"a": {"dtype": "F32"}}, bytes(8), "makes no sense"),
        ({"a": 3}, bytes(8), "makes no sense"),
        ({"a": entry(), "b": entry()}, bytes(8), "overlap"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12), "overlap"),
        ({"a": entry(offsets=[4, 12])}, bytes(12), "gaps"),
        ({"a": entry()}, bytes(7), "1 byte of its .* bytes are missing"),
        ({"a": entry()}, bytes(9), "1 byte are left after"),
        (b'{"a": 1, "a": 2}', b"", "not valid JSON"),
        (b'{"a": {"b": ' * 50_000, b"", "not valid JSON"),
        (b'{"\xff": 1}', b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "damaged header"),
        (b"{", b"", "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:60],  # some are 600,000 letters long
)
def test_hostile_headers(header: Any, data: bytes, sentence: str, tmp_path: Path) -> None:
    path = file_with(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=sentence):
        read_header(path)


@pytest.mark.parametrize("length", [10**6, 99_999_999, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(length: int, tmp_path: Path) -> None:
    path = file_with(tmp_path / "long.safetensors", {"a": entry()}, bytes(8), length)
    with pytest.raises(CheckpointError, match=r"cut short|no readable header"):
        read_header(path)


def test_names_from_a_file_cannot_spoil_a_sentence(tmp_path: Path) -> None:
    name = "\x1b[31m\nline two " + "x" * 5000
    path = file_with(tmp_path / "bad.safetensors", {name: 3})
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert len(str(raised.value)) < 300
    assert str(raised.value).isprintable()


def test_a_header_larger_than_what_is_read_is_no_other_format(tmp_path: Path) -> None:
    path = file_with(tmp_path / "big.safetensors", {"__metadata__": {"notes": "x" * 26_000_000}})
    with pytest.raises(
        CheckpointError, match=r"big\.safetensors has a header of 26\.0 MB, and VAE Guard reads at most"
    ):
        read_header(path)
