"""What one generation asks for: the values of the panel, of the API and of the XYZ axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vae_lib.errors import InputError, written
from vae_lib.planning import Route

DECODE_BY: dict[str, Route | None] = {"Auto": None, **{route.caption: route for route in Route}}
NAMES = ("fallback", "decode_by", "threshold")
LARGEST_THRESHOLD = 1024.0
_ALIASES = {route.value: route.caption for route in Route} | {"tiled+ram": "Tiled + RAM", "automatic": "Auto"}


@dataclass(frozen=True)
class Request:
    """Per-generation values, in the order of the panel.

    Attributes:
        fallback: whether another route may be taken when memory does not suffice.
        decode_by: a key of DECODE_BY.
        threshold: free memory in GB (10^9 bytes) under which the full decode is skipped; 0: the setting's.
    """

    fallback: bool = True
    decode_by: str = "Auto"
    threshold: float = 0.0

    @property
    def route(self) -> Route | None:
        return DECODE_BY[self.decode_by]


def from_args(args: Sequence[Any]) -> Request:
    """The request of a script's arguments: by position, or one mapping by name. None means the default.

    Raises:
        InputError: when a value has the wrong type or is out of range; the sentence names the argument.
    """
    if args and isinstance(args[0], Mapping):  # by name through the page's arguments: the rest are defaults
        return from_mapping(args[0])
    if len(args) > len(NAMES):
        raise InputError(f"VAE Guard takes {len(NAMES)} arguments ({', '.join(NAMES)}); {len(args)} were given.")
    return from_mapping(dict(zip(NAMES, args, strict=False)))


def from_mapping(values: Mapping[Any, Any]) -> Request:
    """The request of arguments by name; raises as `from_args`."""
    unknown = [str(name) for name in values if name not in NAMES]
    if unknown:
        raise InputError(f"VAE Guard has no argument {unknown[0]!r}; there are {', '.join(NAMES)}.")
    request = Request()
    if (fallback := values.get("fallback")) is not None:
        if not isinstance(fallback, bool):
            raise InputError(f"Argument 'fallback' of VAE Guard must be true or false, not {written(fallback)}.")
        request = replace(request, fallback=fallback)
    if (decode_by := values.get("decode_by")) is not None:
        request = replace(request, decode_by=decode_by_of(decode_by))
    if (threshold := values.get("threshold")) is not None:
        request = replace(request, threshold=threshold_of(threshold))
    return request


def decode_by_of(value: Any) -> str:
    """A key of DECODE_BY, whatever the case in which it was written."""
    if isinstance(value, str):
        wanted = value.strip().casefold()
        wanted = _ALIASES.get(wanted, wanted).casefold()
        for name in DECODE_BY:
            if name.casefold() == wanted:
                return name
    raise InputError(f"Argument 'decode_by' of VAE Guard must be one of {', '.join(DECODE_BY)}, not {written(value)}.")


def threshold_of(value: Any) -> float:
    """A threshold in GB."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= LARGEST_THRESHOLD:
        raise InputError(
            f"Argument 'threshold' of VAE Guard must be a number of GB from 0 to {LARGEST_THRESHOLD:g}, not "
            f"{written(value)}."
        )
    return float(value)


def merged(request: Request, values: Mapping[str, Any]) -> Request:
    """``request`` with some arguments replaced; raises as `from_args`."""
    known = {name: getattr(request, name) for name in NAMES}
    return from_mapping({**known, **values})
