"""Which of the host's pictures one is: recognised by its pixels, in memory or in the file that it was saved in.

A gallery shows what a generation made, and what scripts put together of several: grids, an upscaled picture of many
tiles. Infotexts do not distinguish them, for a script gives its result the first one's; nor do paths, because gradio
may show a copy of a file, and gives some hosts the opened picture alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from PIL import Image

Looks = frozenset[str]
"""Digests of all that a page may show of one picture; empty where it is not clear which picture it is."""


def looks(image: Image.Image) -> Looks:
    """Of a picture that the host has made: a JPEG of it has other pixels."""
    found = (digest(image), digest(getattr(image, "already_saved_as", None)))
    return frozenset(filter(None, found))


def digest(shown: str | Image.Image | None) -> str | None:
    """Of a picture's size and pixels, or of those of a file; None where there is none to be read."""
    if isinstance(shown, str):
        try:
            with Image.open(shown) as image:
                return digest(image)
        except OSError:
            return None
    if shown is None:
        return None
    pixels = hashlib.blake2b(shown.convert("RGB").tobytes(), digest_size=16)
    return f"{shown.width}x{shown.height} {pixels.hexdigest()}"


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
