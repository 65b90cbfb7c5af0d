"""Pictures on disk and as tensors."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from vae_lib.errors import InputError
from vae_lib.files import write_atomically

# Pixels of a side that a format can say; writers find out when the work is done.
_MOST_PIXELS = {
    "WEBP": 16383,
    "JPEG": 65535,
    "MPO": 65535,
    "AVIF": 65536,
    "GIF": 65535,
    "TGA": 65535,
    "ICO": 256,
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

_ORIENTATION, _EXIF, _USER_COMMENT = 0x0112, 0x8769, 0x9286
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # that make a picture of this orientation upright
_MOST_EXIF = 65000  # bytes; a segment of a JPEG file has 65533 in all


def read_picture(path: Path, multiple: int, channels: int = 3) -> Tensor:
    """(1, channels, H, W) float32 in [-1, 1], turned upright, cropped at the centre to multiples of ``multiple``.

    Raises:
        InputError: when the file is not there, is no picture, or is smaller than ``multiple``, or ``channels`` are
            not those of a picture.
    """
    if channels not in _MODES:
        raise InputError(f"This VAE takes pictures of {channels} channels, which no picture file has.")
    try:
        with Image.open(path) as file:
            upright = _upright(file)
            numbers = _deep_grey(upright, file.format, path.name)
            if numbers is None:
                numbers = np.array(upright.convert(_MODES[channels]), dtype=np.float32) / 255
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except InputError:
        raise
    except Exception as error:  # each reader has its own
        raise InputError(f"{path} cannot be read as a picture ({error}).") from error
    has_height, has_width = numbers.shape[:2]
    height, width = has_height - has_height % multiple, has_width - has_width % multiple
    if not width or not height:
        raise InputError(f"{path} is {has_width}x{has_height}; at least {multiple}x{multiple} is needed.")
    if (width, height) != (has_width, has_height):
        print(
            f"vae_lib: cropped {path.name} from {has_width}x{has_height} to {width}x{height}.",
            file=sys.stderr,
        )
    left, top = (has_width - width) // 2, (has_height - height) // 2
    pixels = torch.from_numpy(numbers[top : top + height, left : left + width].reshape(height, width, -1))
    pixels = pixels.mul(2).sub_(1).permute(2, 0, 1)
    if len(pixels) != channels:  # grey with more than 8 bits: each colour is that, and nothing is transparent
        pixels = torch.cat([pixels.expand(min(channels, 3), -1, -1), torch.ones(max(channels - 3, 0), height, width)])
    return pixels.unsqueeze(0).contiguous()


def _upright(file: Image.Image) -> Image.Image:
    """The picture as its EXIF data says that it is to be shown; without a turn where these cannot be read.

    Pillow's ``exif_transpose`` also writes the data again, and fails for entries that it can read and not write. Its
    reader of TIFF files does so, too, when the pixels are there and ``load_end`` is called.
    """
    if file.format == "TIFF":
        file.load_end = lambda: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            turn = _TURNS.get(file.getexif().get(_ORIENTATION))
    except Exception:  # pixels count, and damaged metadata fail in many ways
        turn = None
    return file if turn is None else file.transpose(turn)


def _deep_grey(picture: Image.Image, form: str | None, name: str) -> NDArray[np.float32] | None:
    """(H, W) float32 in [0, 1] of grey with more than 8 bits, which ``convert`` cuts off at white; None of any other.

    Raises:
        InputError: when nothing tells which numbers are black and white.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and form in ("PNG", "PPM")):
        return np.array(picture).astype(np.float32) / 65535
    if picture.mode not in ("I", "F"):
        return None
    numbers = np.array(picture)
    low, high = numbers.min(), numbers.max()
    if picture.mode == "F" and low >= 0 and high <= 1:
        return numbers.astype(np.float32)
    kind = "whole" if picture.mode == "I" else "floating-point"
    found = f"from {low:g} to {high:g}" if np.isfinite(low) and np.isfinite(high) else "with NaN or infinite ones"
    raise InputError(
        f"{name} holds {kind} numbers {found}, and nothing tells which of them are black and white; save it with 8 or "
        "16 bits per channel."
    )


def to_image(picture: Tensor) -> Image.Image:
    """A picture (C, H, W) in [-1, 1], C being 1, 3 or 4 (with alpha), in 8 bits; what lies outside is clamped."""
    pixels = picture.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    mode = _MODES[len(picture)]
    array = pixels[0] if mode == "L" else pixels.permute(1, 2, 0)
    return Image.fromarray(array.contiguous().numpy(), mode)


def picture_names(path: Path, count: int) -> list[Path]:
    """The files that a batch of ``count`` pictures is written to."""
    if count == 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{index}") for index in range(1, count + 1)]


def check_picture(path: Path, width: int, height: int, channels: int = 3) -> None:
    """See beforehand whether a picture can be written to a file, in the format of its suffix.

    Raises:
        InputError: when the suffix is not a picture's, or its format has no room for such a picture.
    """
    form = _format(path)
    if channels not in _MODES:
        raise InputError(
            f"This VAE makes pictures of {channels} channels, which no picture file has; leave -o out and write the "
            "numbers with --tensor OUT.safetensors."
        )
    most = _MOST_PIXELS.get(form)
    if most is not None and max(width, height) > most:
        raise InputError(
            f"The picture will be {width}x{height}, and {form} files have at most {most} pixels on a side; write "
            f"{path.with_suffix('.png').name} instead."
        )
    try:
        Image.new(_MODES[channels], (16, 16)).save(io.BytesIO(), form)
    except Exception as error:  # each writer has its own
        kind = "with transparency" if channels == 4 else f"of {channels} channels"
        raise InputError(
            f"{form} files cannot hold a picture {kind} as this VAE makes it ({error}); write "
            f"{path.with_suffix('.png').name} instead."
        ) from error


def write_picture(picture: Tensor, path: Path, parameters: str | None = None) -> None:
    """Write (C, H, W) in [-1, 1] in the format of the file's suffix, PNG without one.

    ``parameters`` is the generation's infotext, put where the WebUI puts it and looks for it.

    Raises:
        InputError: when the suffix is not a picture's, or the file cannot be written.
    """
    form = _format(path)
    image, extra = to_image(picture), _infotext(form, parameters)
    try:
        write_atomically(path, lambda aside: image.save(aside, form, **extra))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} was not written: {error}.") from error


def _format(path: Path) -> str:
    Image.init()
    form = Image.EXTENSION.get(path.suffix.lower(), "PNG" if not path.suffix else None)
    if form is None or form not in Image.SAVE:
        raise InputError(f"{path.name} has no suffix of a picture format that can be written; use .png.")
    return form


def _infotext(form: str, parameters: str | None) -> dict[str, Any]:
    """What ``Image.save`` is to be given so that a file carries the infotext."""
    if not parameters:
        return {}
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", parameters)
        return {"pnginfo": info}
    if form == "GIF":
        return {"comment": parameters}
    if form not in ("JPEG", "WEBP", "AVIF"):
        return {}
    exif = Image.Exif()
    exif[_EXIF] = {_USER_COMMENT: b"UNICODE\0" + parameters.encode("utf-16-be", "surrogatepass")}
    data = exif.tobytes()
    if len(data) > _MOST_EXIF:
        print(
            f"vae_lib: the infotext is too long for a {form} file and was left out; PNG has room for it.",
            file=sys.stderr,
        )
        return {}
    return {"exif": data}
