"""The table of routes to a picture, and what the planner may have against one.

A row says all that is to be said of a route; what it would take is planned in ``plan``, by which the ladder runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True)
class Row:
    """What there is to say of a route.

    Attributes:
        caption: its name in the page.
        how: at the end of a sentence, such as "decoded in full".
        help: a line for the command line.
        colour: of its line in a plot; None where it takes nothing of the device that the plot is about.
        exact: whether it gives the picture of the full decode, up to rounding.
        elsewhere: whether it computes on another device than the one that decodes.
    """

    caption: str
    how: str
    help: str
    colour: str | None
    exact: bool = True
    elsewhere: bool = False


class Route(str, Enum):
    """A route to the picture, the usually preferred first: every list of routes is in this order.

    Members are their names in settings, JSON and on the command line.
    """

    row: Row

    def __new__(cls, name: str, row: Row) -> Route:
        member = str.__new__(cls, name)
        member._value_, member.row = name, row
        return member

    # fmt: off
    FULL = ("full", Row(
        "Full", "in full", "layers over the whole picture; the fastest where it fits", "#3b82f6"))
    TILED = ("tiled", Row(
        "Tiled", "in tiles", "the same layers in bands of rows, what can be computed again is not kept", "#10b981"))
    OFFLOAD = ("offload", Row(
        "Tiled + RAM", "in tiles kept in RAM",
        "tiled, with the layers' activations in main memory (on the CPU: in a scratch file)", "#f59e0b"))
    CPU = ("cpu", Row(
        "CPU", "on the CPU", "full or tiled on the CPU, when the GPU is too small", None, elsewhere=True))
    TAESD = ("taesd", Row(
        "TAESD", "with TAESD", "the tiny autoencoder: very fast and small, but an approximation", "#a855f7",
        exact=False))
    # fmt: on

    @classmethod
    def named(cls, name: str) -> Route:
        """Raises ValueError for what is no route's name."""
        for route in cls:
            if route.value == name:
                return route
        raise ValueError(f"{name!r} is no route")

    @property
    def exact(self) -> bool:
        return self.row.exact

    @property
    def elsewhere(self) -> bool:
        return self.row.elsewhere

    @property
    def caption(self) -> str:
        """Its name in the page."""
        return self.row.caption

    @property
    def label(self) -> str:
        """Its name in the middle of a sentence: "full", "tiled + RAM", but "TAESD"."""
        return self.caption if self.caption.isupper() else self.caption[0].lower() + self.caption[1:]


DEFAULT_ORDER = tuple(Route)
EXACT = tuple(route for route in Route if route.exact)
ON_DEVICE = tuple(route for route in EXACT if not route.elsewhere)
FALLBACKS = tuple(route for route in Route if route is not Route.FULL)


@dataclass(frozen=True)
class DoesNotFit:
    """The least that the route needs, in bytes, and what was free on its device, or allowed (``is_limit``) of that."""

    route: Route
    need_bytes: int
    free_bytes: int
    is_limit: bool = False


@dataclass(frozen=True)
class FreeUnknown:
    """The route needs so many bytes; its device does not report what is free, and one that takes less goes first."""

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
