"""The choice among the routes: the fastest exact plan that fits, in the order of the user's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vae_lib.device.dtypes import dtype_name
from vae_lib.device.memory import FIRST_PROMISE, free_memory
from vae_lib.errors import PlanError
from vae_lib.planning.plan import LAST_FEW, UNLIMITED, Plan, ladders
from vae_lib.planning.profile import Profile, Profiles
from vae_lib.planning.route import (
    DEFAULT_ORDER,
    ON_DEVICE,
    Distrusted,
    DoesNotFit,
    FreeUnknown,
    Objection,
    Route,
    TooSlow,
    Unavailable,
)
from vae_lib.planning.work import Work
from vae_lib.units import size_text

MemoryOf = Callable[[torch.device], int | None]
"""Bytes that may be allocated on a device on top of what is there; None where it does not report that."""


class NothingFits(PlanError):
    """No allowed route can be taken now; ``event`` says it as a fact."""

    def __init__(self, message: str, event: Objection) -> None:
        super().__init__(message)
        self.event = event


@dataclass(frozen=True)
class Planner:
    """What is known of the machine, and the choice that follows from it.

    Attributes:
        memory: what is free on a device; asked for each choice.
        profiles: how fast a device is, and which routes it is not trusted with.
        limit: bytes of any device that may be used at most; ``memory`` says no more than that.
        patience: an exact plan that takes over this many times the full decode's time gives way to TAESD, if that is
            allowed and there.
    """

    memory: MemoryOf = free_memory
    profiles: Profiles = Profile.usual
    patience: float = 20.0
    limit: int | None = None

    def candidates(self, work: Work, route: Route) -> list[Plan]:
        """All plans of one route, by and large from the fastest and largest to the slowest and smallest."""
        return [make() for ladder in ladders(work, route, self.profiles) for make in ladder]

    def smallest(self, work: Work, order: Sequence[Route] = DEFAULT_ORDER) -> Plan | None:
        """The plan that needs least memory, on the device of the work if one of the routes computes there.

        None when none of them can be taken, whatever the memory.
        """
        made = (ladder[-LAST_FEW:] for route in order for ladder in ladders(work, route, self.profiles))
        plans = [plan for ladder in made for make in ladder if (plan := make()).fits(UNLIMITED)]
        here = [plan for plan in plans if plan.device == work.device]
        return min(here or plans, key=lambda plan: plan.peak_bytes, default=None)

    def choose(self, work: Work, order: Sequence[Route] = DEFAULT_ORDER, limit: int = UNLIMITED) -> Plan:
        """The first in ``order`` that fits; of the exact ones on the device, the fastest.

        Args:
            order: routes allowed, the preferred first.
            limit: bytes that may be taken on the device at most, whatever is free. Where its free memory is unknown and
                nothing limits it, the best plan that takes little is chosen, or the one that takes least.

        Raises:
            NothingFits: when nothing does; it says the least that would do.
        """
        free = self.memory(work.device)
        if free is None and limit == UNLIMITED:
            return self._promised(work, order)
        return self._choose(work, order, min(limit, UNLIMITED if free is None else free))

    def _choose(self, work: Work, order: Sequence[Route], free: int) -> Plan:
        allowed = tuple(order)
        elsewhere = self.memory(work.spare)
        fitting: list[Plan] = []
        short_of_ram = ""
        for route in allowed:
            best = self._first_fit(work, route, self._limit(work, route, free))
            ram = self.memory(torch.device("cpu")) if best is not None and best.host_bytes else None
            if best is not None and ram is not None and best.host_bytes > ram:
                order = [other for other in order if other is not route]
                short_of_ram = (
                    f" ({best.describe()} would need {size_text(best.host_bytes, up=True)} of main memory, of which "
                    f"{size_text(ram)} is free.)"
                )
            elif best is not None:
                fitting.append(best)
                if best.route is Route.FULL or not best.route.exact:
                    break  # nothing after it could be preferred
        full = self._first_fit(work, Route.FULL, UNLIMITED)
        why = self._against_full(work, full, free, allowed)
        if not fitting:
            least = self.smallest(work, order)
            if least is not None and least.device == work.device and least.fits(free):
                return replace(least, free_bytes=free, why=why)
            raise self._nothing_fits(work, allowed, least, free, short_of_ram)
        chosen = fitting[0]
        if chosen.route in ON_DEVICE:
            chosen = min((plan for plan in fitting if plan.route in ON_DEVICE), key=lambda plan: plan.seconds)
        if full is not None and chosen.route.exact and chosen.seconds > self.patience * full.seconds:
            quick = next((plan for plan in fitting if not plan.route.exact), None)
            if quick is not None:
                chosen, why = quick, (*why, TooSlow(chosen.route, chosen.seconds))
        if chosen.route is Route.FULL:
            why = ()
        return replace(chosen, free_bytes=free if chosen.device == work.device else elsewhere, why=why)

    def _nothing_fits(
        self, work: Work, allowed: tuple[Route, ...], least: Plan | None, free: int, short_of_ram: str
    ) -> NothingFits:
        if least is None:
            problem = (
                "None of the enabled routes can be used: there is no TAESD, and no other route is enabled, or possible "
                "on this device." + short_of_ram
            )
            return NothingFits(problem, Unavailable(allowed, problem))
        if least.device != work.device:
            free = self.memory(least.device) or 0
        return NothingFits(
            f"{size_text(free)} is not enough for {_size(work)}, which takes at least "
            f"{size_text(least.peak_bytes, up=True)} ({least.describe()}). Free some memory, enable more routes, "
            "or choose a smaller picture." + short_of_ram,
            DoesNotFit(least.route, least.peak_bytes, free, free == self.limit),
        )

    def _against_full(
        self, work: Work, full: Plan | None, free: int, allowed: Sequence[Route]
    ) -> tuple[Objection, ...]:
        """What spoke against the full decode, where it was allowed."""
        if Route.FULL in allowed and Route.FULL in self.profiles(work).distrusted:
            return (Distrusted(Route.FULL),)
        if full is not None and full.peak_bytes > free:
            return (DoesNotFit(Route.FULL, full.peak_bytes, free, free == self.limit),)
        return ()

    def _promised(self, work: Work, order: Sequence[Route]) -> Plan:
        """Where nobody knows what is free: what fits into a small promise, or else what takes least."""
        try:
            plan = self._choose(work, order, FIRST_PROMISE)
        except PlanError:
            least = self.smallest(work, order)
            if least is None or least.device != work.device:
                raise
            plan = least
        why = tuple(FreeUnknown(e.route, e.need_bytes) if isinstance(e, DoesNotFit) else e for e in plan.why)
        return replace(plan, free_bytes=None if plan.device == work.device else plan.free_bytes, why=why)

    def _limit(self, work: Work, route: Route, free: int) -> int:
        """Bytes that a route may take on the device that it computes on."""
        if not route.elsewhere or work.device == work.spare:
            return free
        there = self.memory(work.spare)
        return UNLIMITED if there is None else there

    def _first_fit(self, work: Work, route: Route, limit: int) -> Plan | None:
        """The fastest plan of the route that fits, found by bisection along each ladder."""
        fitting: list[Plan] = []
        for ladder in ladders(work, route, self.profiles):
            low, high, found = 0, len(ladder), None
            while low < high:
                middle = (low + high) // 2 if low else 0  # the first is the likeliest: most pictures fit
                plan = ladder[middle]()
                if plan.fits(limit):
                    found, high = plan, middle
                else:
                    low = middle + 1
            if found is not None:
                fitting.append(found)  # large bands that recompute can be faster than tiny ones that do not
        return min(fitting, key=lambda plan: plan.seconds, default=None)

    def frozen(self) -> Planner:
        """The same with what is free now, however often it is asked."""
        return replace(self, memory=functools.cache(self.memory))

    def within(self, limit: int) -> Planner:
        """The same that takes so many bytes of any device at most."""

        def memory(device: torch.device) -> int | None:
            free = self.memory(device)
            return limit if free is None else min(free, limit)

        return replace(self, memory=memory, limit=limit)

    def with_free(self, device: torch.device, free: int | None) -> Planner:
        """The same if so many bytes were free on a device."""
        return replace(self, memory=lambda other: free if other == device else self.memory(other))


def _size(work: Work) -> str:
    height, width = work.pixels
    what = f"{width}x{height}" if work.frames == 1 else f"{work.frames} frames of {width}x{height}"
    return f"{work.operation.doing} {what} in {dtype_name(work.dtype)}"
