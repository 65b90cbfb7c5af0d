"""What would be done: the first plan that the search would attempt, and what each route would take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.networks.small import CPU, FP32, SMALL
from tests.planning.plans import planner
from vae_lib.engine import Operation
from vae_lib.errors import PlanError
from vae_lib.planning import DEFAULT_ORDER, Outlook, Preference, Profile, Route, Work, routes_for
from vae_lib.planning.events import Asked, BelowThreshold
from vae_lib.planning.route import Distrusted, DoesNotFit
from vae_lib.planning.search import Search, Step

WORK = Work(SMALL, Operation.DECODE, 16, 16, 1, CPU, FP32)
PLENTY = 1 << 50


@pytest.mark.parametrize(
    "preference",
    [
        Preference.of(DEFAULT_ORDER),
        Preference.above(1 << 51),
        Preference.above(1 << 10),
        Preference((Step((Route.TILED,), asked=True), Step((Route.FULL,)))),
        Preference((Step((Route.FULL,), trusts_prediction=False),)),
    ],
)
@pytest.mark.parametrize("free", [PLENTY, 200_000, 1000])
def test_it_is_the_first_plan_of_the_search(preference: Preference, free: int) -> None:
    machine = planner(free)
    outlook, search = Outlook(machine, WORK, preference), Search(WORK, preference, machine)
    if outlook.chosen is None:
        with pytest.raises(PlanError) as error:
            search.next_plan()
        assert str(error.value) == str(outlook.problem)
        return
    plan = search.next_plan()
    assert (outlook.chosen, outlook.events, outlook.problem) == (plan, search.events_for(plan), None)
    if plan.route in routes_for(WORK):
        assert outlook.of(plan.route).now == plan


def test_why_it_is_that_one() -> None:
    assert Outlook(planner(PLENTY), WORK, Preference.above(1 << 51)).events == (BelowThreshold(PLENTY, 1 << 51),)
    asked = Preference((Step((Route.OFFLOAD,), asked=True),))
    assert Outlook(planner(PLENTY), WORK, asked).events == (Asked(Route.OFFLOAD),)


def test_every_route_there_is_has_a_prospect() -> None:
    assert [p.route for p in Outlook(planner(PLENTY), WORK, ()).prospects] == [
        Route.FULL, Route.TILED, Route.OFFLOAD,
    ]  # fmt: skip
    assert routes_for(replace(WORK, config=None, taesd=True)) == (Route.TAESD,)
    gpu = replace(WORK, device=CPU.__class__("cuda"), taesd=True)
    assert routes_for(gpu) == DEFAULT_ORDER
    for prospect in Outlook(planner(1000, 1000), gpu, DEFAULT_ORDER).prospects:
        assert prospect.now is None
        assert prospect.least is not None
        assert isinstance(prospect.objection, DoesNotFit)


def test_a_route_that_is_not_trusted_says_so() -> None:
    profile = replace(Profile.usual(WORK), distrusted=frozenset({Route.FULL}))
    outlook = Outlook(planner(PLENTY, profile=profile), WORK, DEFAULT_ORDER)
    assert outlook.of(Route.FULL).objection == Distrusted(Route.FULL)
    assert outlook.chosen is not None
    assert outlook.chosen.route is Route.TILED


def test_free_memory_is_asked_once() -> None:
    asked: list[str] = []

    def memory(device: object) -> int:
        asked.append(str(device))
        return PLENTY

    outlook = Outlook(replace(planner(), memory=memory), WORK, DEFAULT_ORDER)
    assert len(outlook.prospects) == 3
    assert asked == ["cpu"]
