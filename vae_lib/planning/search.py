"""Which plan to attempt next: the steps that the user prefers, the memory that is free now, and what failed so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vae_lib.errors import PlanError
from vae_lib.planning.events import Asked, Attempt, BelowThreshold, Event, NoScratch, Overflow
from vae_lib.planning.plan import UNLIMITED, Plan
from vae_lib.planning.planner import NothingFits, Planner
from vae_lib.planning.route import FALLBACKS, Route, TooSlow, Unavailable
from vae_lib.planning.work import Work

# How much of the predicted need must be free for another attempt after memory ran out in spite of the prediction.
SHRINK = 0.6
MOST_ATTEMPTS = 8  # in one step


@dataclass(frozen=True)
class Step:
    """Routes among which the planner chooses, before those of the next step.

    Attributes:
        routes: allowed, the preferred first.
        trusts_prediction: False to begin even though the prediction says that memory will not suffice.
        least_free_bytes: the step is passed over when less is free on the device.
        asked: whether the user asked for just this route.
    """

    routes: tuple[Route, ...]
    trusts_prediction: bool = True
    least_free_bytes: int = 0
    asked: bool = False


@dataclass(frozen=True)
class Preference:
    """The steps to take, in order, until one gives the picture."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, order: Sequence[Route] | Preference) -> Preference:
        """A bare sequence of routes is one step."""
        return order if isinstance(order, Preference) else cls((Step(tuple(order)),))

    @classmethod
    def above(cls, threshold_bytes: int, fallback: Sequence[Route] = FALLBACKS) -> Preference:
        """Full where at least so many bytes are free, whatever is predicted; else the others, and full after all."""
        full = Step((Route.FULL,), trusts_prediction=False, least_free_bytes=threshold_bytes)
        return cls((full, Step(tuple(fallback)), Step((Route.FULL,))))

    @property
    def routes(self) -> tuple[Route, ...]:
        """All that are allowed, in the order of the table."""
        return tuple(route for route in Route if any(route in step.routes for step in self.steps))


class Exhausted(PlanError):
    """Every route that was allowed failed; the ladder words it.

    Attributes:
        attempts: what failed.
    """

    def __init__(self, attempts: Sequence[Attempt], advice: str) -> None:
        super().__init__(advice)
        self.attempts = attempts


class Search:
    """The plans to try for one piece of work, one after the other.

    Attributes:
        events: what happened so far.
    """

    def __init__(
        self, work: Work, preference: Preference, planner: Planner, repairs: Sequence[torch.dtype] = ()
    ) -> None:
        """
        Args:
            planner: asked before each attempt.
            repairs: dtypes to compute in again when numbers overflow, in order.
        """
        self.events: list[Event] = []
        self._work, self._planner = work, planner
        self._repairs = [dtype for dtype in repairs if dtype != work.dtype]
        self._steps = deque(preference.steps)
        self._step = Step(())
        self._routes: list[Route] = []  # of the step, those that are left
        self._limit = UNLIMITED  # our own, below the budget, after memory ran out
        self._given = UNLIMITED  # what the last plan was chosen for
        self._tries = 0  # in the step

    def next_plan(self) -> Plan:
        """What to attempt now.

        Raises:
            Exhausted: when nothing is left after all that was attempted.
            PlanError: when nothing could be attempted.
        """
        problem: PlanError | None = None
        while True:
            if self._routes and self._tries < MOST_ATTEMPTS:
                try:
                    return self._choose()
                except PlanError as error:
                    problem = error
                attempted = {event.plan.route for event in self.events if isinstance(event, Attempt)}
                others = [route for route in self._routes if route not in attempted]
                if self._tries and self._limit < UNLIMITED and others:
                    self._routes, self._limit = others, UNLIMITED  # it was our own caution that left nothing
                    continue
                if not self._tries and self._steps:
                    self.events.append(_event(problem, self._step))
            if not self._begin_next_step():
                raise self._exhausted(problem) from None

    def _choose(self) -> Plan:
        device, now = self._work.device, self._planner.frozen()
        hopes = not self._step.trusts_prediction and not self._tries
        planner = now.with_free(device, UNLIMITED) if hopes else now
        free = now.memory(device)
        self._given = UNLIMITED if hopes else self._limit if free is None else min(free, self._limit)
        plan = planner.choose(self._work, self._routes, self._limit)
        return replace(plan, free_bytes=free) if plan.device == device else plan

    def _begin_next_step(self) -> bool:
        while self._steps:
            step = self._steps.popleft()
            free = self._planner.memory(self._work.device) if step.least_free_bytes else 0
            if free is not None and free < step.least_free_bytes:
                self.events.append(BelowThreshold(free, step.least_free_bytes))
                continue
            if step.asked:
                self.events.append(Asked(step.routes[0]))
            self._step, self._routes, self._limit, self._tries = step, list(step.routes), UNLIMITED, 0
            return True
        return False

    def _exhausted(self, problem: PlanError | None) -> PlanError:
        attempts = [event for event in self.events if isinstance(event, Attempt)]
        if not attempts:
            return problem or PlanError("No decode route is enabled. Enable one in Settings > VAE Guard.")
        return Exhausted(attempts, str(problem or "Free some memory or enable more routes."))

    def events_for(self, plan: Plan) -> tuple[Event, ...]:
        """All that happened before ``plan``, which worked."""
        # What failed says more than the planner, whose budget was then our own cautious one.
        why = (event for event in plan.why if isinstance(event, TooSlow) or not self.events)
        return (*self.events, *why)

    def has_failed(self, kind: type) -> bool:
        """Whether an attempt failed like this before."""
        return any(isinstance(event, kind) for event in self.events)

    def can_repair(self, plan: Plan) -> bool:
        """Whether there is another dtype to try after numbers overflowed."""
        return plan.route is not Route.TAESD and any(dtype != plan.dtype for dtype in self._repairs)

    def failed(self, event: Attempt, is_resident: Callable[[torch.dtype], bool]) -> None:
        """Note that a plan failed, and draw the consequences; ``is_resident`` as in ``Work``, for another dtype."""
        self.events.append(event)
        self._tries += 1
        plan = event.plan
        if isinstance(event, Overflow):
            dtype, *self._repairs = (dtype for dtype in self._repairs if dtype != plan.dtype)
            self._work = replace(self._work, dtype=dtype, resident=is_resident(dtype))
            self._limit = UNLIMITED
            return
        if not isinstance(event, NoScratch):
            self._limit = int(min(self._given, plan.peak_bytes) * SHRINK)
        elsewhere = plan.device != self._work.device or plan.route is Route.TAESD
        if elsewhere:
            self._limit = UNLIMITED
        once = plan.route in (Route.FULL, Route.CPU, Route.TAESD) or self._tries > MOST_ATTEMPTS // 2
        if once or isinstance(event, NoScratch):
            self._routes = [route for route in self._routes if route is not plan.route]


def _event(problem: PlanError, step: Step) -> Event:
    return problem.event if isinstance(problem, NothingFits) else Unavailable(step.routes, str(problem))
