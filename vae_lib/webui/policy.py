"""Which ways to try, in which order: what the user asked for, made into tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_lib.decode import Operation, Route
from vae_lib.webui.options import Settings
from vae_lib.webui.request import Request

GB = 10**9
ASKED = "as asked for"


@dataclass(frozen=True)
class Try:
    """A set of routes to choose from.

    Attributes:
        order: routes allowed, the preferred first.
        trust_prediction: False to start even if the prediction says that memory will not suffice.
        note: why this set, when that is not the plan's own reason.
    """

    order: tuple[Route, ...]
    trust_prediction: bool = True
    note: str = ""


def tries(
    request: Request, settings: Settings, free: int, operation: Operation = Operation.DECODE
) -> Sequence[Try]:
    """The tries for one decode or encode, in order; ``free`` is in bytes."""
    fallback = tuple(settings.fallback)
    if operation is Operation.ENCODE and not settings.encode:
        return (Try((Route.FULL,), trust_prediction=False),)
    route = request.route if operation is Operation.DECODE else None
    if route is not None:
        asked = Try((route,), trust_prediction=route is not Route.FULL, note=ASKED)
        rest = tuple(other for other in (Route.FULL, *fallback) if other is not route)
        return (asked, Try(rest)) if request.fallback and rest else (asked,)
    if not request.fallback or not fallback:
        return (Try((Route.FULL,), trust_prediction=False),)
    threshold = request.threshold or (settings.threshold if settings.fixed else 0.0)
    if not threshold:
        return (Try((Route.FULL, *fallback)),)
    if free >= threshold * GB:
        return (Try((Route.FULL,), trust_prediction=False), Try(fallback))
    return (Try(fallback, note=f"less than the threshold of {threshold:g} GB was free"), Try((Route.FULL,)))
