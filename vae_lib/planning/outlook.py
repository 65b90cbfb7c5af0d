"""What would be done: the one answer that a generation acts on and that page, API and command line show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from vae_lib.errors import PlanError
from vae_lib.planning.events import Event
from vae_lib.planning.plan import Plan
from vae_lib.planning.planner import NothingFits, Planner
from vae_lib.planning.route import Distrusted, Objection, Route, Unavailable
from vae_lib.planning.search import Preference, Search
from vae_lib.planning.work import Work


@dataclass(frozen=True)
class Prospect:
    """One route for some work.

    Attributes:
        now: how it would be done with what is free now; None where it cannot be.
        least: the plan that takes least; None where the route cannot be taken, whatever the memory.
        objection: what speaks against it; None where ``now`` is there.
    """

    route: Route
    now: Plan | None
    least: Plan | None
    objection: Objection | None = None


class Outlook:
    """What the machine would do with some work, with what is free now.

    Attributes:
        work, preference: what was asked.
        chosen: the first plan that would be attempted; None where there is none.
        events: why it is that one.
        problem: why there is none.
    """

    def __init__(self, planner: Planner, work: Work, preference: Preference | Sequence[Route]) -> None:
        self._planner = planner.frozen()
        self.work, self.preference = work, Preference.of(preference)
        search = Search(work, self.preference, self._planner)
        self.chosen: Plan | None = None
        self.events: tuple[Event, ...] = ()
        self.problem: PlanError | None = None
        try:
            self.chosen = search.next_plan()
            self.events = search.events_for(self.chosen)
        except PlanError as error:
            self.problem = error

    def free(self, device: torch.device) -> int | None:
        """Bytes that may be allocated; None where the device does not report them."""
        return self._planner.memory(device)

    @cached_property
    def prospects(self) -> tuple[Prospect, ...]:
        """Of each route that there is for such work, whether or not it is allowed."""
        return tuple(self.of(route) for route in routes_for(self.work))

    def of(self, route: Route) -> Prospect:
        """The prospect of one route."""
        least = self._planner.smallest(self.work, (route,))
        if self.chosen is not None and self.chosen.route is route:
            return Prospect(route, self.chosen, least)
        try:
            return Prospect(route, self._planner.choose(self.work, (route,)), least)
        except NothingFits as error:
            wrong = route in self._planner.profiles(self.work).distrusted
            return Prospect(route, None, least, Distrusted(route) if wrong else error.event)
        except PlanError as error:
            return Prospect(route, None, least, Unavailable((route,), str(error)))


def routes_for(work: Work) -> tuple[Route, ...]:
    """Those there are for it: exact ones for a VAE, another device's beside this one, TAESD where one is at hand."""

    def is_there(route: Route) -> bool:
        if not route.exact:
            return work.taesd
        return work.config is not None and not (route.elsewhere and work.spare == work.device)

    return tuple(route for route in Route if is_there(route))
