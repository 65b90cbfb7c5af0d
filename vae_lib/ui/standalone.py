"""A folder of VAEs, without the WebUI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from vae_lib.checkpoints import WEIGHTS_EXTENSIONS
from vae_lib.device import choose_device, kinds
from vae_lib.errors import printable
from vae_lib.files import files_in, is_gone, require_folder
from vae_lib.hub import DownloadManager
from vae_lib.ui.backend import Backend, VAEFile

SUFFIXES = frozenset({*WEIGHTS_EXTENSIONS, ".gguf"})  # of which the tab says what it is
BUNDLED = Path(__file__).resolve().parents[1] / "data" / "vae_guard_tiny.safetensors"


class FolderBackend(Backend):
    """A folder and its subfolders, plus the small VAE that comes with the package.

    Raises:
        InputError: when the folder is not there, or may not be looked at.
    """

    def __init__(self, folder: Path) -> None:
        require_folder(folder, "make it, or name another with --folder")
        self.folder = folder
        self._device = choose_device()
        self._downloads = DownloadManager(folder)

    def files(self) -> Sequence[VAEFile]:
        files, closed = files_in(self.folder)
        found = [VAEFile(self._name(path), path) for path in files if path.suffix.lower() in SUFFIXES]
        if not is_gone(BUNDLED) and all(file.path.resolve() != BUNDLED for file in found):
            found.append(VAEFile(f"(bundled) {BUNDLED.name}", BUNDLED))
        return found + [VAEFile(f"{self._name(path)}/", path, said) for path, said in closed.items()]

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.folder).as_posix())

    def device(self) -> torch.device:
        return self._device

    def dtype(self) -> torch.dtype:
        return torch.float16 if kinds.of(self._device).tensor_cores else torch.float32

    def downloads(self) -> DownloadManager:
        return self._downloads
