"""Which plan to try next: the steps that the user prefers, the memory that is free now, and what failed so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vae_lib.decode import wording
from vae_lib.decode.events import Asked, Attempt, BelowThreshold, Event, NoScratch, Overflow
from vae_lib.errors import PlanError
from vae_lib.planning.plan import UNLIMITED, NothingFits, Plan, Rates, Work, choose
from vae_lib.planning.route import Route, TooSlow, Unavailable

# How much of the predicted need must be free for another try after memory ran out in spite of the prediction.
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


class Search:
    """The plans to try for one piece of work, one after the other.

    Attributes:
        events: what happened so far.
    """

    def __init__(
        self,
        work: Work,
        preference: Preference,
        budget: Callable[[torch.device], int | None],
        rates: Rates | None,
        repairs: Sequence[torch.dtype],
    ) -> None:
        """
        Args:
            budget: asked before each try how many bytes may be allocated on a device; None: nobody knows.
            repairs: dtypes to compute in once more when numbers overflow, in order.
        """
        self.events: list[Event] = []
        self._work, self._budget, self._rates = work, budget, rates
        self._repairs = [dtype for dtype in repairs if dtype != work.dtype]
        self._steps = deque(preference.steps)
        self._step = Step(())
        self._routes: list[Route] = []  # of the step, those that are left
        self._limit = UNLIMITED  # our own, below the budget, after memory ran out
        self._given: int | None = UNLIMITED  # what the last plan was chosen for
        self._tries = 0  # in the step

    def next_plan(self) -> Plan:
        """What to try now.

        Raises:
            PlanError: when nothing is left; it tells all that failed.
        """
        problem: PlanError | None = None
        while True:
            if self._routes and self._tries < MOST_ATTEMPTS:
                try:
                    return self._choose()
                except PlanError as error:
                    problem = error
                tried = {event.plan.route for event in self.events if isinstance(event, Attempt)}
                untried = [route for route in self._routes if route not in tried]
                if self._tries and self._limit < UNLIMITED and untried:
                    self._routes, self._limit = untried, UNLIMITED  # it was our own caution that left nothing
                    continue
                if not self._tries and self._steps:
                    self.events.append(_event(problem, self._step))
            if not self._begin_next_step():
                raise self._exhausted(problem) from None

    def _choose(self) -> Plan:
        device = self._work.device
        free = self._budget(device)
        hopes = not self._step.trusts_prediction and not self._tries
        if hopes:
            self._given = UNLIMITED
        elif free is None:
            self._given = None if self._limit == UNLIMITED else self._limit
        else:
            self._given = min(free, self._limit)
        plan = choose(
            self._work,
            self._given,
            order=self._routes,
            cpu_free_bytes=self._budget(torch.device("cpu")),
            rates=self._rates,
        )
        return replace(plan, free_bytes=free) if plan.device == device else plan

    def _begin_next_step(self) -> bool:
        while self._steps:
            step = self._steps.popleft()
            free = self._budget(self._work.device) if step.least_free_bytes else 0
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
            return problem or PlanError("No way is allowed; allow some in Settings > VAE Guard.")
        advice = problem or "Free some memory or allow more ways."
        return PlanError(f"Every allowed way failed ({wording.failed_attempts(attempts)}). {advice}")

    def events_for(self, plan: Plan) -> tuple[Event, ...]:
        """All that happened on the way to ``plan``, which worked."""
        # What failed says more than the planner, whose budget was then our own cautious one.
        why = (event for event in plan.why if isinstance(event, TooSlow) or not self.events)
        return (*self.events, *why)

    def has_failed(self, kind: type) -> bool:
        """Whether an attempt failed in this way before."""
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
            given = plan.peak_bytes if self._given is None else min(self._given, plan.peak_bytes)
            self._limit = int(given * SHRINK)
        elsewhere = plan.device != self._work.device or plan.route is Route.TAESD
        if elsewhere:
            self._limit = UNLIMITED
        once = plan.route in (Route.FULL, Route.CPU, Route.TAESD) or self._tries > MOST_ATTEMPTS // 2
        if once or isinstance(event, NoScratch):
            self._routes = [route for route in self._routes if route is not plan.route]


def _event(problem: PlanError, step: Step) -> Event:
    return problem.event if isinstance(problem, NothingFits) else Unavailable(step.routes, str(problem))
