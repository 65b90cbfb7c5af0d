"""Opening a weights file of either format, or saying in one sentence what it is instead."""

from __future__ import annotations

import stat
from pathlib import Path

from vae_lib.catalog.names import SAFE_EXTENSIONS
from vae_lib.checkpoints import gguf
from vae_lib.checkpoints.header import Header
from vae_lib.checkpoints.pickle_file import PickleFile, looks_like_pickle
from vae_lib.checkpoints.safetensors_file import SafetensorsFile, looks_like_safetensors
from vae_lib.errors import CheckpointError
from vae_lib.files import PathLike

WeightsFile = SafetensorsFile | PickleFile

_AGAIN, _AS_SAFETENSORS = "download it again", "choose the VAE in .safetensors"


def open_weights(path: PathLike) -> WeightsFile:
    """Open a weights file by its content, whatever its extension; use it as a context manager.

    Raises:
        CheckpointError: when it cannot be read, is damaged, is no weights file, or wants to run code.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError(_folder(path))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block, a device may never end
            raise CheckpointError(f"{path} is a device or a pipe, not a file; choose a weights file.")
        size = status.st_size
        with path.open("rb") as file:
            start = file.read(512)
        if start.startswith(gguf.MAGIC):
            what = gguf.describe(path)
            raise CheckpointError(f"{path.name} is {what}, a format that VAE Guard does not read; {_AS_SAFETENSORS}.")
        if looks_like_safetensors(start):
            return SafetensorsFile(path)
        if looks_like_pickle(start):
            return PickleFile(path)
        if path.suffix.lower() in SAFE_EXTENSIONS and _is_not_weights(start) is None and size:
            return SafetensorsFile(path)  # raises, and says what is wrong
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size == 0:
        raise CheckpointError(f"{path.name} is empty; {_AGAIN}.")
    raise CheckpointError(f"{path.name} is {_is_not_weights(start) or 'not a weights file of a known format'}.")


def read_header(path: PathLike) -> Header:
    """Names, dtypes, shapes and metadata of a weights file.

    Of a safetensors file only the header is read; a zipped pickle is mapped; an old pickle has to be read
    whole.

    Raises:
        CheckpointError: as ``open_weights``.
    """
    with open_weights(path) as weights:
        return weights.header


def _is_not_weights(start: bytes) -> str | None:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, a few lines of text in the place of the weights; download the real file"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script")):
        return f"a web page, not weights (the site answered with an error or a login page); {_AGAIN}"
    if text.startswith((b'{"', b"{ ", b"[", b"{\n")):
        return f"JSON text, not weights (a settings file, or the error that a site answered with); {_AGAIN}"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF")):
        return "a picture, not weights"
    if start.startswith((b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b")):
        return "an archive, not weights; unpack it first"
    return None


def _folder(path: Path) -> str:
    names: tuple[str, ...] = (
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    )
    names += tuple(f"vae/{name}" for name in names)
    inside = next((name for name in names if (path / name).is_file()), None)
    return f"{path} is a folder, not a file; choose {inside or 'the weights file'} in it."
