"""Downloads as Windows does them: other calls, files in use that stay where they are, and paths of bounded length."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.hub.conftest import taesd_bytes, vae_bytes
from tests.hub.hub_server import HubServer
from tests.windows import files_in_use_stay, is_in_use, names_without_case
from vae_lib.checkpoints import load_vae
from vae_lib.errors import DownloadError
from vae_lib.hub import TargetExists, has_taesd, pull, staging


@pytest.fixture(autouse=True)
def _windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For our own code: pathlib would make paths with backslashes."""
    with files_in_use_stay():
        there = {name: getattr(os, name) for name in dir(os)}
        monkeypatch.setattr(staging, "os", SimpleNamespace(**{**there, "name": "nt", "rename": _rename}))
        yield


def _rename(source: Path, target: Path) -> None:
    """Fails when the name is taken, as it does on Windows."""
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(target))
    os.rename(source, target)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_vae_and_a_taesd_arrive(hub: HubServer, models: Path) -> None:
    hub.add("acme/vae", {"good.safetensors": vae_bytes()})
    hub.add("madebyollin/taesd", {"diffusion_pytorch_model.safetensors": taesd_bytes()})
    got = pull("acme/vae", models / "VAE", taesd_folder=models / "VAE-taesd", endpoint=hub.endpoint)
    assert got.path.read_bytes() == vae_bytes()
    tiny = pull("madebyollin/taesd", models / "VAE", taesd_folder=models / "VAE-taesd", endpoint=hub.endpoint)
    assert len(tiny.also) == 2
    assert has_taesd(models / "VAE-taesd", "SD1")
    for folder in (models / "VAE", models / "VAE-taesd"):
        assert not list((folder / ".vae-guard").rglob("*.part"))


def test_a_loaded_vae_is_neither_replaced_nor_fetched_again(hub: HubServer, models: Path) -> None:
    hub.add("acme/vae", {"good.safetensors": vae_bytes()})
    folder = models / "VAE"
    path = pull("acme/vae", folder, endpoint=hub.endpoint).path
    loaded = load_vae(path, dtype=torch.float32, hash_file=False)
    handle = path.open("rb")
    assert is_in_use(path)
    with pytest.raises(PermissionError):
        path.unlink()
    assert pull("acme/vae", folder, endpoint=hub.endpoint).bytes_fetched == 0
    hub.add("acme/other", {"good.safetensors": vae_bytes(seed=1)})
    with pytest.raises(TargetExists, match="Nothing was overwritten"):
        pull("acme/other", folder, endpoint=hub.endpoint)
    pull("acme/other", folder, endpoint=hub.endpoint, on_conflict="rename")
    assert files(folder) == ["good-2.safetensors", "good.safetensors"]
    assert path.read_bytes() == vae_bytes()
    handle.close()
    del loaded


def test_a_name_that_differs_in_case_only_is_taken(hub: HubServer, models: Path) -> None:
    hub.add("acme/vae", {"Good.safetensors": vae_bytes()})
    folder = models / "VAE"
    folder.mkdir(parents=True, exist_ok=True)
    other = folder / "good.SAFETENSORS"
    other.write_bytes(vae_bytes(seed=1))
    with names_without_case():
        with pytest.raises(TargetExists, match="Nothing was overwritten"):
            pull("acme/vae", folder, endpoint=hub.endpoint)
        pull("acme/vae", folder, endpoint=hub.endpoint, on_conflict="rename")
        assert pull("acme/vae", folder, endpoint=hub.endpoint, on_conflict="rename").path.is_file()
    assert other.read_bytes() == vae_bytes(seed=1)
    assert (folder / "Good-2.safetensors").read_bytes() == vae_bytes()


def test_the_same_file_by_a_name_in_another_case_is_not_fetched_again(hub: HubServer, models: Path) -> None:
    hub.add("acme/vae", {"Good.safetensors": vae_bytes()})
    folder = models / "VAE"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.safetensors").write_bytes(vae_bytes())
    with names_without_case():
        got = pull("acme/vae", folder, endpoint=hub.endpoint)
    assert (got.bytes_fetched, got.path.name) == (0, "good.safetensors")  # as the WebUI lists it
    assert files(folder) == ["good.safetensors"]


def test_a_file_that_fails_its_check_can_be_moved_away(hub: HubServer, models: Path) -> None:
    """Nothing of ours has it mapped by then."""
    hub.add("acme/bad", {"bad.safetensors": vae_bytes()[:-8] + b"\0" * 4})
    gc.disable()
    try:
        with pytest.raises(DownloadError, match="was moved to"):
            pull("acme/bad", models / "VAE", endpoint=hub.endpoint)
    finally:
        gc.enable()
    assert files(models / "VAE") == []


def test_a_path_that_is_too_long_is_told_before_the_download(
    hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("acme/vae", {"good.safetensors": vae_bytes()})
    touch = Path.touch

    def too_long(path: Path, *arguments: object, **options: object) -> None:
        if path.name == "good.safetensors":
            raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified", str(path))
        touch(path)

    monkeypatch.setattr(Path, "touch", too_long)
    monkeypatch.setattr(staging, "LONGEST_ON_WINDOWS", 40)
    with pytest.raises(DownloadError, match=r"letters, and Windows takes fewer than 40.*shorter one"):
        pull("acme/vae", models / "VAE", endpoint=hub.endpoint)
    assert hub.gets() == []
