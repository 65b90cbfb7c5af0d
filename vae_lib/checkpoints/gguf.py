"""What a GGUF file holds, and how it is quantised: enough for a sentence, as VAE Guard reads no tensors of that format.

Source: github.com/ggml-org/ggml, ``docs/gguf.md``. A file that does not keep to it is a GGUF file of which that is all
that can be said.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

from vae_lib.checkpoints.foreign import describe_foreign
from vae_lib.checkpoints.layouts import map_keys

MAGIC = b"GGUF"
_MOST_BYTES = 16_000_000  # of metadata and names; a language model's vocabulary is the largest part
_MOST_DIMENSIONS = 8
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16",
}  # fmt: skip
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a metadata value by its type
_STRING, _ARRAY = 8, 9


def describe(path: Path) -> str:
    """A noun phrase for a GGUF file.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        reader = _Reader(file.read(_MOST_BYTES))
    try:
        types = reader.tensors()
    except (struct.error, ValueError, RecursionError):
        return "a GGUF file"
    if not types:
        return "a GGUF file"
    held = "a VAE" if map_keys(types) is not None else describe_foreign(types)
    counted = Counter(_TYPES.get(kind, f"type {kind}") for kind in types.values())
    kinds = " and ".join(kind for kind, _ in counted.most_common(2))
    return f"{held} in a GGUF file ({kinds})"


class _Reader:
    """Goes through a file's beginning; past its end there is a ValueError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, len(MAGIC)

    def tensors(self) -> dict[str, int]:
        """The type of each tensor, by its name."""
        _version = self._number("<I")
        tensors, entries = self._number("<Q"), self._number("<Q")
        for _ in range(entries):
            self._text()
            self._skip(self._number("<I"))
        types: dict[str, int] = {}
        for _ in range(tensors):
            name, dimensions = self._text(), self._number("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError("no tensor has so many dimensions")
            self._forward(8 * dimensions)
            types[name] = self._number("<I")
            self._forward(8)
        return types

    def _skip(self, kind: int) -> None:
        """A metadata value."""
        if kind == _STRING:
            self._forward(self._number("<Q"))
        elif kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _SIZES:
                self._forward(_SIZES[inner] * count)
                return
            for _ in range(count):
                self._skip(inner)
        elif kind in _SIZES:
            self._forward(_SIZES[kind])
        else:
            raise ValueError(f"no type {kind}")

    def _text(self) -> str:
        length = self._number("<Q")
        start = self._at
        self._forward(length)
        return self._data[start : self._at].decode("utf-8")

    def _number(self, form: str) -> int:
        (number,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(number)

    def _forward(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("cut short")
