"""The tab's table of the host's files, where a folder of theirs may not be looked into."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def test_they_are_listed_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tmp_path / "VAE" / "a.safetensors"
    members: dict[str, dict[str, Any]] = {
        "modules": {},
        "modules.infotext_utils": {"PasteField": object},
        "modules.scripts": {"Script": object, "AlwaysVisible": object()},
        "modules.sd_vae": {"vae_dict": {"a.safetensors": str(vae)}, "vae_path": str(vae.parent)},
        "modules.shared": {"cmd_opts": SimpleNamespace(vae_dir=None)},
        "modules.paths_internal": {"models_path": str(tmp_path)},
    }
    for name, values in members.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        setattr(sys.modules["modules"], name.rpartition(".")[2], module)
    from vae_lib.webui.tab import HostBackend

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
    assert [(file.name, file.problem) for file in HostBackend().files()] == [
        ("a.safetensors", None),
        ("VAE-taesd/taesd_decoder.pth", None),
        (f"{closed}/", f"The folder {closed} cannot be looked into: Permission denied."),
    ]
