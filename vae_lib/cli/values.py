"""Values on the command line: sizes, types, routes."""

from __future__ import annotations

import argparse
import math
import re

from vae_lib.catalog import FAMILIES, Family
from vae_lib.planning import Route

ROUTES = ("auto", *(route.value for route in Route))
_UNITS = {"": 1} | {f"{k}{i}": (1024 if i else 1000) ** n for n, k in enumerate("KMGT", 1) for i in ("", "I")}


def byte_size(text: str) -> int:
    """ "300MB", "1.5GB", "512MiB" or plain bytes, as a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]I?)?B?\s*", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write it like 300MB, 1.5GB or 512MiB")
    size = float(match[1]) * _UNITS[match[2] or ""]
    if not 1 <= size < 1 << 62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size that memory can have")
    return int(size)


def pixels(text: str) -> int:
    """A width or height in pixels. Of what it has to be a multiple, each VAE says."""
    value = _whole(text, "number of pixels")
    if not 1 <= value <= 1 << 17:
        raise argparse.ArgumentTypeError(f"{value} cannot be used: sizes are from 1 to {1 << 17}")
    return value


def positive(text: str) -> int:
    value = _whole(text, "number")
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is too small: at least 1 is needed")
    return value


def _whole(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole {what}") from None


def factor(text: str) -> float:
    """A scaling factor: a finite number other than zero."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("a scaling factor of 0 cannot be divided by; use 1 to switch it off")
    return value


def family(text: str) -> Family:
    """One of ``FAMILIES``, in any case, and with or without the blanks in its name."""
    wanted = text.lower().replace(" ", "")
    found = next((one for name, one in FAMILIES.items() if name.lower().replace(" ", "") == wanted), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(FAMILIES)}")
    return found


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value
