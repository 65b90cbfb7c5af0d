"""The ways of getting a picture, and what the planner may have against one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Route(str, Enum):
    """A way of getting the picture; all but TAESD give the same one."""

    FULL = "full"
    TILED = "tiled"
    OFFLOAD = "offload"
    TAESD = "taesd"
    CPU = "cpu"

    @property
    def exact(self) -> bool:
        return self is not Route.TAESD

    @property
    def caption(self) -> str:
        """Its name in the page."""
        return _CAPTIONS[self]

    @property
    def label(self) -> str:
        """The same in the middle of a sentence: "full", "tiled + RAM", but "TAESD"."""
        return self.caption if self.caption.isupper() else self.caption[0].lower() + self.caption[1:]


_CAPTIONS = {
    Route.FULL: "Full",
    Route.TILED: "Tiled",
    Route.OFFLOAD: "Tiled + RAM",
    Route.CPU: "CPU",
    Route.TAESD: "TAESD",
}


@dataclass(frozen=True)
class DoesNotFit:
    """The least that the route needs, in bytes, and what was free on its device."""

    route: Route
    need_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class FreeUnknown:
    """The route needs so many bytes; nobody knows what is free on its device, and a way that takes less goes first."""

    route: Route
    need_bytes: int


@dataclass(frozen=True)
class Unavailable:
    """None of these routes could be taken, whatever the memory, and why, in a sentence."""

    routes: tuple[Route, ...]
    problem: str


@dataclass(frozen=True)
class Distrusted:
    """The route gave a wrong picture when the device was checked."""

    route: Route


@dataclass(frozen=True)
class TooSlow:
    """An exact route that fits would have taken so many seconds."""

    route: Route
    seconds: float


Objection = DoesNotFit | FreeUnknown | Unavailable | Distrusted | TooSlow
