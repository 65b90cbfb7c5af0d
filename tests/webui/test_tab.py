"""The tab's table of the host's files, where a folder of theirs may not be looked into."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.guard.fake_host import FakeHost
from vae_lib.guard import Guard
from vae_lib.webui.downloads import Downloads
from vae_lib.webui.tab import HostBackend


class FakeWebUI(FakeHost):
    """With VAEs of its own."""

    def vae_files(self) -> Mapping[str, Path]:
        return {"a.safetensors": self.data / "VAE" / "a.safetensors"}

    def vae_folders(self) -> Sequence[Path]:
        return [self.data / "VAE"]


def test_they_are_listed_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host: Any = FakeWebUI(tmp_path)
    guard = Guard(host)
    backend = HostBackend(guard, host, Downloads(host, guard.notices))
    vae = tmp_path / "VAE" / "a.safetensors"
    tiny = tmp_path / "VAE-taesd" / "taesd_decoder.pth"
    for path in (vae, tiny, vae.parent / "closed" / "b.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    scandir = os.scandir

    def guarded(folder: Any) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    closed = vae.parent / "closed"
    assert [(file.name, file.problem) for file in backend.files()] == [
        ("a.safetensors", None),
        ("VAE-taesd/taesd_decoder.pth", None),
        (f"{closed}/", f"The folder {closed} cannot be looked into: Permission denied."),
    ]
