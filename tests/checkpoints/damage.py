"""Files that were damaged, for the tests of every reader."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from vae_lib.checkpoints import open_weights
from vae_lib.errors import CheckpointError


def overwrite(data: st.DataObject, content: bytearray) -> None:
    """A few bytes, anywhere, by others."""
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))


def assert_read_or_told(path: Path) -> None:
    """Tensors of the shapes announced, or a sentence that names the file."""
    try:
        with open_weights(path) as file:
            for name, info in file.header.tensors.items():
                assert tuple(file.read(name).shape) == info.shape
    except CheckpointError as error:
        assert str(error).startswith(path.name)  # noqa: PT017 - both outcomes are right
