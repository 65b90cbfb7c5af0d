"""What the tab knows of its files, and when it looks at one again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.webui import weights
from vae_lib.ui.library import Library, Row
from vae_lib.ui.standalone import FolderBackend

SDXL = {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.13025}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return weights.save_vae(tmp_path / "vae" / "mine.safetensors", weights.as_diffusers(weights.vae(1)))


def hashed(library: Library, file: Path) -> Row:
    """Its row, once nothing more is found out in the background."""
    end = time.monotonic() + 60
    while True:
        (row,) = (row for row in library.rows() if row.file.path == file)
        if not row.hashing:
            return row
        assert time.monotonic() < end
        time.sleep(0.01)


def family(row: Row) -> str:
    assert row.identity is not None
    return row.identity.family_name


def test_what_lies_beside_a_file_is_read_again_when_it_changes(file: Path) -> None:
    library = Library(FolderBackend(file.parent))
    assert family(hashed(library, file)) == "SD1, SD2 or SDXL"
    config = file.with_name("config.json")
    config.write_text(json.dumps(SDXL))
    assert family(library.rows()[0]) == "SDXL"  # at once
    assert family(hashed(library, file)) == "SDXL"
    config.write_text(json.dumps({**SDXL, "scaling_factor": 0.18215}))
    assert family(hashed(library, file)) == "SD1"
    other = shutil.copy(file, file.with_name("other.safetensors"))  # whose config.json is it now?
    assert family(hashed(library, file)) == "SD1, SD2 or SDXL"
    Path(other).unlink()
    config.unlink()
    assert family(hashed(library, file)) == "SD1, SD2 or SDXL"


def test_a_file_is_not_read_again_for_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.with_name("config.json").write_text(json.dumps(SDXL))
    library = Library(FolderBackend(file.parent))
    first = hashed(library, file)
    file.with_name("notes.txt").write_text("of no interest")
    monkeypatch.setattr("vae_lib.ui.library.identify", lambda *_, **__: pytest.fail("read again"))
    assert hashed(library, file) == first
