"""What the tab lists of the folders of VAEs that the WebUI itself does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vae_lib.ui.library import Library
from vae_lib.webui.tab import HostBackend

VAES = Path(__file__).parents[2] / "vae_lib" / "data"


@pytest.fixture
def backend(tmp_path: Path) -> HostBackend:
    for folder in ("one", "two", "taesd"):
        (tmp_path / folder).mkdir()
    listed = {
        "usual.safetensors": tmp_path / "one" / "usual.safetensors",
        "listed.sft": tmp_path / "one" / "listed.sft",
    }
    for path in (*listed.values(), tmp_path / "one" / "ae.sft", tmp_path / "two" / "ae.sft"):
        path.write_bytes((VAES / "vae_guard_tiny.safetensors").read_bytes())
    (tmp_path / "one" / "vae-Q8_0.gguf").write_bytes(b"GGUF")
    (tmp_path / "one" / "notes.txt").touch()
    host: Any = SimpleNamespace(
        vae_files=lambda: listed,
        vae_folders=lambda: [tmp_path / "one", tmp_path / "two"],
        folders=lambda: SimpleNamespace(taesd=tmp_path / "taesd"),
    )
    return HostBackend(SimpleNamespace(), host, SimpleNamespace())  # type: ignore[arg-type]


def test_each_file_once_and_what_it_is(backend: HostBackend, tmp_path: Path) -> None:
    rows = {row.name: row for row in Library(backend).rows()}
    second = str(tmp_path / "two" / "ae.sft")
    assert list(rows) == ["usual.safetensors", "listed.sft", "ae.sft", "vae-Q8_0.gguf", second]
    assert rows["ae.sft"].identity is not None
    assert str(rows["vae-Q8_0.gguf"].problem).startswith(
        "vae-Q8_0.gguf is a GGUF file, a format that VAE Guard does not"
    )
