"""Which routes to take, in which order: what the user asked for and set, made into steps."""

from __future__ import annotations

from dataclasses import replace

from vae_lib.engine import Operation
from vae_lib.guard.generation import Generation
from vae_lib.guard.request import Request
from vae_lib.guard.settings import Settings
from vae_lib.planning import FALLBACKS, Preference, Route, Step
from vae_lib.planning.route import EXACT

GB = 10**9
_ONLY_FULL = Step((Route.FULL,), trusts_prediction=False)
SMALLER = Preference((Step(tuple(route for route in FALLBACKS if route.exact)),))
_EXACT = Step(EXACT)


def of(current: Generation | None, settings: Settings, operation: Operation, is_video: bool = False) -> Preference:
    """The steps for the generation that runs; what is decoded again is decoded exactly, and so are videos."""
    if current is not None and current.again is not None:
        return Preference((_EXACT,))
    usual = preference(Request() if current is None else current.request, settings, operation)
    if is_video:
        return Preference(_exact_of(usual) or (_EXACT,))
    return _exact_first(usual) if current is not None and current.is_first_pass else usual


def _exact_first(usual: Preference) -> Preference:
    """TAESD last: what it loses in a picture that is enlarged and sampled on, no later decode can give back."""
    approximate = tuple(route for route in usual.routes if not route.exact)
    return Preference((*_exact_of(usual), _EXACT, Step(approximate))) if approximate else usual


def _exact_of(usual: Preference) -> tuple[Step, ...]:
    """Its steps without TAESD, as far as something is left of them."""
    steps = (replace(step, routes=tuple(route for route in step.routes if route.exact)) for step in usual.steps)
    return tuple(step for step in steps if step.routes)


def preference(request: Request, settings: Settings, operation: Operation = Operation.DECODE) -> Preference:
    """The steps for one decode or encode."""
    fallback = tuple(settings.fallback)
    if operation is Operation.ENCODE and not settings.encode:
        return Preference((_ONLY_FULL,))
    route = request.route if operation is Operation.DECODE else None
    if route is not None:
        asked = Step((route,), trusts_prediction=route is not Route.FULL, asked=True)
        rest = tuple(other for other in (Route.FULL, *fallback) if other is not route)
        return Preference((asked, Step(rest)) if request.fallback and rest else (asked,))
    if not request.fallback or not fallback:
        return Preference((_ONLY_FULL,))
    threshold = request.threshold or (settings.threshold if settings.fixed else 0.0)
    if not threshold:
        return Preference((Step((Route.FULL, *fallback)),))
    return Preference.above(int(threshold * GB), fallback)
