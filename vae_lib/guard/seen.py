"""Which of the host's pictures one is: recognised by its pixels, in memory or in the file that it was saved in.

A gallery shows what a generation made, and what scripts put together of several: grids, an upscaled picture of many
tiles. Infotexts do not distinguish them, for a script gives its result the first one's; nor do paths, because gradio
may show a copy of a file, and gives some hosts the opened picture alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_MOST_TRIES = 16  # rows that look alike, of a picture that has nothing in it


@dataclass(frozen=True)
class Looks:
    """All that a page may show of one picture; empty where it is not clear which picture it is.

    Attributes:
        digests: of the picture, and of its file, which may be a JPEG with other pixels.
        size: width and height.
        row: the pixels of a row of it, by which it is found in what a script put together.
        top: which row that is.
    """

    digests: frozenset[str] = frozenset()
    size: tuple[int, int] = (0, 0)
    row: bytes = b""
    top: int = 0


def looks(image: Image.Image) -> Looks:
    """Of a picture that the host has made."""
    pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    top = int(np.ptp(pixels, axis=1).sum(axis=1, dtype=np.int64).argmax())
    return Looks(digests(image), image.size, pixels[top].tobytes(), top)


def digests(image: Image.Image) -> frozenset[str]:
    """Of what the host has made, and of the file that it saved it in."""
    found = (digest(image), digest(getattr(image, "already_saved_as", None)))
    return frozenset(filter(None, found))


def digest(shown: str | Image.Image | None) -> str | None:
    """Of a picture's size and pixels, or of those of a file; None where there is none to be read."""
    image = opened(shown)
    if image is None:
        return None
    pixels = hashlib.blake2b(image.tobytes(), digest_size=16)
    return f"{image.width}x{image.height} {pixels.hexdigest()}"


def opened(shown: str | Image.Image | None) -> Image.Image | None:
    """A picture, or that of a file, in RGB; None where there is none to be read."""
    if isinstance(shown, str):
        try:
            with Image.open(shown) as image:
                return image.convert("RGB")
        except (OSError, Image.DecompressionBombError):  # hosts make larger grids than they open
            return None
    return None if shown is None else shown.convert("RGB")


def place_in(whole: Image.Image, part: Looks) -> tuple[int, int] | None:
    """Where a picture lies in a larger one, pixel for pixel: left and top. ``whole`` is RGB."""
    width, height = part.size
    if not part.row or whole.width < width or whole.height < height or whole.size == part.size:
        return None
    pixels, start = whole.tobytes(), -1
    for _ in range(_MOST_TRIES):
        start = pixels.find(part.row, start + 1)
        if start < 0:
            break
        row, left = divmod(start // 3, whole.width)
        top = row - part.top
        is_inside = top >= 0 and top + height <= whole.height and left + width <= whole.width
        if is_inside and digest(whole.crop((left, top, left + width, top + height))) in part.digests:
            return left, top
    return None


def pictures(infotexts: Sequence[str], images: Sequence[Image.Image]) -> Iterator[Looks]:
    """The generation's pictures, one for each infotext, among what else is shown with them.

    The host writes an infotext into each of its pictures, if its settings do not forbid it, and into no mask.
    """
    if len(images) == len(infotexts):
        yield from map(looks, images)
        return
    left = iter(images)
    found = [next((image for image in left if image.info.get("parameters") == text), None) for text in infotexts]
    for image in found:
        yield Looks() if image is None or None in found else looks(image)
