"""What is known of a weights file before its tensors are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Format = Literal["safetensors", "pickle"]


@dataclass(frozen=True)
class TensorInfo:
    """``dtype`` is torch's name ("float16"), or the file's own where torch has none."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """Names, dtypes and shapes of all tensors in a file, and the text metadata that safetensors may carry."""

    path: Path
    format: Format
    file_size: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)


def quote(name: object, limit: int = 80) -> str:
    """A name out of a file, made fit for a sentence: one line, bounded, control characters escaped."""
    text = repr(str(name))
    return text if len(text) <= limit else text[: limit - 4] + "...'"


def quote_some(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(quote(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
