"""Reading the safetensors format (github.com/huggingface/safetensors) with nothing taken on trust.

A file is eight bytes of little-endian header length, a JSON header ``name -> {dtype, shape, data_offsets}``
and the tensors' bytes. The header is checked in full before any tensor is read, so a truncated or hostile
file ends in one sentence, and no size it names is allocated before it is known to lie inside the file.
Tensors are read, not mapped: the file may be replaced or removed afterwards.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from vae_lib.checkpoints.header import Header, TensorInfo, quote
from vae_lib.errors import CheckpointError
from vae_lib.units import size_text

# A tenth does for any checkpoint; a hostile one may take 25 times its size in memory. The format allows 100 MB.
MAX_HEADER_BYTES = 25_000_000

MAX_RANK = 16  # no weights come near; it bounds the work that a hostile shape can ask for

# name in the file -> (name in torch, bits per element)
_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
    "BOOL": ("bool", 8), "C64": ("complex64", 64),
}  # fmt: skip


class SafetensorsFile:
    """An open file whose header has been checked; ``read`` gives single tensors.

    Raises:
        CheckpointError: when the file is damaged or is not in this format.
        OSError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("rb")
        try:
            size = os.fstat(self._file.fileno()).st_size
            entries, metadata, self._data_start = _read_header(self._file, path.name, size)
            self._offsets = {name: (begin, end) for name, (_, begin, end) in entries.items()}
            tensors = {name: info for name, (info, _, _) in entries.items()}
            self.header = Header(path, "safetensors", size, metadata, tensors)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in the file's dtype.

        Raises:
            CheckpointError: when this torch has no such dtype, or the file changed since it was opened.
        """
        info = self.header.tensors[name]
        dtype = getattr(torch, info.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"{self.header.path.name} stores {quote(name)} as {info.dtype}, which this "
                "version of PyTorch "
                "cannot read; use an fp16, bf16 or fp32 file."
            )
        begin, end = self._offsets[name]
        if begin == end:
            return torch.empty(info.shape, dtype=dtype)
        data = bytearray(end - begin)
        self._file.seek(self._data_start + begin)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise CheckpointError(f"{self.header.path.name} became shorter while it was read; try again.")
        return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(info.shape)


def looks_like_safetensors(start: bytes) -> bool:
    """Whether the first bytes of a file could open a safetensors file (perhaps one cut short).

    Asked before the marks of other formats, which are shorter: a header of 640 bytes begins as a pickle does.
    """
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def _read_header(
    file: BinaryIO, name: str, size: int
) -> tuple[dict[str, tuple[TensorInfo, int, int]], dict[str, str], int]:
    """(tensor -> (info, begin, end)), metadata, and where in the file offset 0 is."""
    length = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < length <= size - 8 and file.read(1) == b"{":
        raise CheckpointError(
            f"{name} has a header of {size_text(length)}, and VAE Guard reads at most {size_text(MAX_HEADER_BYTES)} of "
            "one: no VAE's file comes near. Save the VAE by itself, without what its metadata hold."
        )
    if size < 8 or length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{name} is not a safetensors file: it has no readable header.")
    if 8 + length > size:
        raise CheckpointError(
            f"{name} is cut short ({size} bytes do not even hold its header); download or copy it again."
        )
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} has a damaged header (not valid JSON); download or copy it again.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name} has a damaged header (not a table of tensors); download or copy it again.")

    raw_metadata = header.pop("__metadata__", None)
    metadata: dict[str, str] = {}
    if isinstance(raw_metadata, dict):
        metadata = {key: value for key, value in raw_metadata.items() if isinstance(value, str)}

    data_size = size - 8 - length
    entries = {key: _entry(name, key, entry) for key, entry in header.items()}
    expected = 0
    for begin, end in sorted((begin, end) for _, begin, end in entries.values()):
        if begin != expected:
            raise CheckpointError(f"{name} has a damaged header: its tensors overlap or leave gaps.")
        expected = end
    if expected > data_size:
        raise CheckpointError(
            f"{name} is cut short: {size_text(expected - data_size)} of its {size_text(8 + length + expected)} are "
            "missing; download or copy it again."
        )
    if expected < data_size:
        raise CheckpointError(
            f"{name} is damaged: {size_text(data_size - expected)} are left after its last tensor; download or "
            "copy it again."
        )
    return entries, metadata, 8 + length


def _entry(name: str, key: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """Check one tensor's entry on its own: types, signs, and the number of bytes that its shape takes."""
    try:
        stored, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
    except (TypeError, KeyError, ValueError):
        stored, shape, begin, end, numbers = None, (), 0, 0, [-1]
    if (
        not isinstance(stored, str)
        or not stored.isprintable()  # it is quoted in messages
        or len(numbers) > MAX_RANK + 2
        or any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers)
        or end < begin
    ):
        raise CheckpointError(f"{name} has a damaged header: its entry {quote(key)} makes no sense.")
    dtype, bits = _DTYPES.get(stored, (stored[:32], None))
    # a dtype of a later version of the format may belong to a part that we never read
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise CheckpointError(f"{name} has a damaged header: {quote(key)} does not have the bytes of its shape.")
    return TensorInfo(dtype, tuple(shape)), begin, end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table
