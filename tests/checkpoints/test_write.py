"""Writing tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lib.checkpoints import open_weights, save_safetensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    tensors = {
        "plain": torch.arange(6.0).reshape(2, 3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "bf16": torch.ones(2, dtype=torch.bfloat16),
        "with gradient": torch.ones(2, requires_grad=True),
        "nothing": torch.empty(0, 4),
    }
    tensors["shared"] = tensors["plain"]
    tensors["row"] = tensors["plain"][1]
    save_safetensors(tensors, tmp_path / "x.safetensors", {"note": "ü"})
    theirs = safetensors.torch.load_file(str(tmp_path / "x.safetensors"))
    assert theirs.keys() == tensors.keys()
    with open_weights(tmp_path / "x.safetensors") as file:
        assert file.header.metadata == {"note": "ü"}
        for name, tensor in tensors.items():
            assert torch.equal(file.read(name), tensor)
            assert torch.equal(theirs[name], tensor)
    assert names(tmp_path) == ["x.safetensors"]


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.lists(st.integers(0, 3), max_size=4),
        max_size=4,
    )
)
def test_any_names_and_shapes_come_back(shapes: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_safetensors(tensors, path)
    with open_weights(path) as file:
        assert file.header.tensors.keys() == tensors.keys()
        assert all(torch.equal(file.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX's")
def test_safetensors_that_do_not_fit(tmp_path: Path) -> None:
    """A limit on the size of files makes the library's own write fail, in a process of its own."""
    script = """if True:
        import resource, signal, sys, torch
        from vae_lib.checkpoints import save_safetensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        save_safetensors({"x": torch.zeros(100_000)}, sys.argv[1])
    """
    command = [sys.executable, "-B", "-c", script, str(tmp_path / "x.safetensors")]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert "InputError" in found.stderr
    assert "the disk is full" in found.stderr
    assert names(tmp_path) == []
