"""Bands in mapped files: where a CPU decode's activations rest between passes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from typing import IO

import torch
from torch import Tensor

from vae_lib.device.failures import is_out_of_memory
from vae_lib.errors import PlanError

# Elsewhere (Windows) a file cannot be removed while a band is mapped on it.
REMOVES_MAPPED_FILES = os.name == "posix"
_left_behind: list[Scratch] = []  # closed while a band was still held, by the traceback of an error for one


class Scratch:
    """A folder of mapped files, one for each band; a file goes with its band, the folder when it is closed.

    Raises:
        PlanError: when there is no folder that can be written to.
    """

    def __init__(self, folder: str | None = None) -> None:
        _remove_left_behind()
        try:
            self.folder = tempfile.mkdtemp(prefix="vae-guard-", dir=folder)
        except OSError as error:
            raise PlanError(
                f"There is no folder for the scratch file of offloaded activations ({error.strerror}). "
                "Set TMPDIR to a folder that can be written to."
            ) from error
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # at exit, at the latest
        self._count = 0
        self._files: list[tuple[str, weakref.ref[Tensor]]] = []

    def band(self, like: Tensor) -> Tensor:
        """A fresh (batch, channels, rows, width), channels last: shape and dtype of ``like``.

        Its space is reserved: a full disk is an error here, and no crash on a later write.

        Raises:
            PlanError: when the disk is full, or the file cannot be mapped.
        """
        self._remove_files(held=False)
        self._count += 1
        path = os.path.join(self.folder, f"{self._count}.bin")
        batch, channels, rows, width = like.shape
        try:
            with open(path, "wb") as file:
                _reserve(file, like.nbytes)
            flat = torch.from_file(path, shared=True, size=like.numel(), dtype=like.dtype)
        except (OSError, RuntimeError) as error:
            _removed(path)
            if is_out_of_memory(error):
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise PlanError(
                f"The scratch file for offloaded activations could not be written to {self.folder} ({reason}). "
                "Free some disk space there or set TMPDIR to another folder."
            ) from error
        band = flat.view(batch, rows, width, channels).permute(0, 3, 1, 2)
        if REMOVES_MAPPED_FILES:
            os.unlink(path)  # the mapping keeps the data; the space is freed with the band
        else:
            self._files.append((path, weakref.ref(band)))
        return band

    def close(self) -> None:
        self._remove_files(held=True)
        if self._files:
            _left_behind.append(self)
        else:
            self._remove()

    def _remove_files(self, held: bool) -> None:
        """Those whose band is gone, or with ``held`` all that the system lets go."""
        self._files = [
            (path, band) for path, band in self._files if (band() is not None and not held) or not _removed(path)
        ]


def _reserve(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)  # Windows allocates the space; macOS leaves a hole


def _removed(path: str) -> bool:
    """Whether the file is gone."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(path)
        except OSError:
            return False
    return True


def _remove_left_behind() -> None:
    waiting = _left_behind[:]
    _left_behind.clear()
    for scratch in waiting:
        scratch.close()
