"""Pictures on disk and as tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from vae_lib.errors import InputError
from vae_lib.files import write_atomically


def read_picture(path: Path, multiple: int) -> Tensor:
    """(1, 3, H, W) float32 in [-1, 1], turned upright, cropped at the centre to multiples of ``multiple`` pixels.

    Raises:
        InputError: when the file is not there, is no picture, or is smaller than ``multiple``.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}).") from error
    width, height = (size - size % multiple for size in picture.size)
    if not width or not height:
        raise InputError(
            f"{path} is {picture.width}x{picture.height}; at least {multiple}x{multiple} is needed."
        )
    if (width, height) != picture.size:
        print(
            f"vae_lib: cropped {path.name} from {picture.width}x{picture.height} to {width}x{height}.",
            file=sys.stderr,
        )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    picture = picture.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return pixels.div_(127.5).sub_(1).permute(2, 0, 1).unsqueeze(0)


def to_image(picture: Tensor) -> Image.Image:
    """A picture (3, H, W) in [-1, 1] as 8-bit RGB; what lies outside is clamped."""
    pixels = picture.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy(), "RGB")


def write_picture(picture: Tensor, path: Path, parameters: str | None = None) -> None:
    """Write (3, H, W) in [-1, 1] in the format of the file's suffix, PNG without one.

    ``parameters`` is the generation's infotext, put where the WebUI puts it in PNG files.

    Raises:
        InputError: when the suffix is not a picture's, or the file cannot be written.
    """
    Image.init()
    form = Image.EXTENSION.get(path.suffix.lower(), "PNG" if not path.suffix else None)
    if form is None or form not in Image.SAVE:
        raise InputError(f"{path.name} has no suffix of a picture format that can be written; use .png.")
    extra = {}
    if parameters and form == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", parameters)
        extra["pnginfo"] = info
    image = to_image(picture)
    write_atomically(path, lambda aside: image.save(aside, form, **extra))
