"""Which of the host's pictures one is: recognised by its file, or by its pixels where a page shows a copy.

A gallery shows what a generation made, and what scripts put together of several: grids, an upscaled picture of many
tiles. Infotexts do not distinguish them, for a script gives its result the first one's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Seen:
    """A picture as the host's generation returned it.

    Attributes:
        path: of the file that the host saved it in; None where it did not.
        size: width and height in pixels.
    """

    path: str | None
    size: tuple[int, int]
    pixels: str

    @classmethod
    def of(cls, image: Image.Image) -> Seen:
        saved = getattr(image, "already_saved_as", None)
        return cls(_real(saved) if saved else None, image.size, _pixels(image))

    def is_in(self, shown: str | Image.Image | None) -> bool:
        """Whether a gallery shows this picture: ``shown`` is its file, or the picture itself."""
        if isinstance(shown, str):
            if _real(shown) == self.path:  # whatever format it is in
                return True
            try:
                with Image.open(shown) as image:
                    return image.size == self.size and _pixels(image) == self.pixels
            except OSError:
                return False
        return shown is not None and shown.size == self.size and _pixels(shown) == self.pixels


def pictures(infotexts: Sequence[str], images: Sequence[Image.Image]) -> Iterator[Seen | None]:
    """The generation's pictures, one for each infotext, among what else is shown with them; None where it is not clear.

    The host writes an infotext into each of its pictures, if its settings do not forbid it, and into no mask.
    """
    if len(images) == len(infotexts):
        yield from map(Seen.of, images)
        return
    left = iter(images)
    found = [
        next((image for image in left if image.info.get("parameters") == text), None) for text in infotexts
    ]
    for image in found:
        yield None if image is None or None in found else Seen.of(image)


def _pixels(image: Image.Image) -> str:
    return hashlib.blake2b(image.convert("RGB").tobytes(), digest_size=16).hexdigest()


def _real(path: str) -> str:
    return os.path.realpath(path)
