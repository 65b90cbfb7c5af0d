"""Memory runs out at every single allocation of a small decode and encode, on every rung: a correct picture each time.

    VAE_GUARD_EVERY_FAULT=1 python -m pytest -s tests/decode/test_faults.py     # prints how many were survived

Without the variable every 23rd allocation is tried, with the first and the last.
"""

from __future__ import annotations

import functools
import os

import pytest
from torch import Tensor

from tests.decode.test_ladder import TINY, Allocations, ladder, outcome_of
from tests.device.test_failures import ROWS, error_of
from tests.engine.gpu import as_on_a_gpu
from tests.networks.small import distance, images, latents_for, live_tensors, network, taesd
from vae_lib.errors import DeviceLost
from vae_lib.networks import AutoencoderKL
from vae_lib.planning import DEFAULT_ORDER, Preference, Route, Step
from vae_lib.planning.events import MaybeOutOfMemory, OutOfMemory

STRIDE = 1 if os.environ.get("VAE_GUARD_EVERY_FAULT") else 23


def work(vae: AutoencoderKL, route: Route, operation: str) -> tuple[Tensor, Tensor]:
    """What is given to the operation, and what the plain network makes of it."""
    if operation == "decode":
        given = latents_for(TINY, 2, 2)
        return given, vae.decode(given)
    side = 16 if route is Route.TAESD else 2
    given = images(side, side)
    return given, vae.encode_moments(given)[0]


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD])
def test_the_way_a_gpu_goes_too(route: Route, operation: str) -> None:
    with as_on_a_gpu("cpu"):
        test_every_allocation_fails_once(route, operation)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", DEFAULT_ORDER)
def test_every_allocation_fails_once(route: Route, operation: str) -> None:
    vae, tiny = network(TINY), taesd() if route is Route.TAESD else None
    given, wanted = work(vae, route, operation)
    order = (route, *(other for other in (Route.OFFLOAD, Route.CPU) if other is not route))
    outcome_of(ladder(vae=vae, taesd=tiny, order=order), operation, given)  # what is cached for good is there
    with Allocations() as counter:
        outcome_of(ladder(vae=vae, taesd=tiny, order=order), operation, given)
    assert counter.count > 5
    before = live_tensors()
    chosen = {*range(1, counter.count, STRIDE), counter.count}
    for k in sorted(chosen):
        with Allocations(k, k) as memory:
            outcome = outcome_of(ladder(vae=vae, taesd=tiny, order=order), operation, given)
        assert memory.raised == 1
        (attempt,) = outcome.attempts
        assert attempt.plan.route is route
        assert isinstance(attempt, OutOfMemory)
        if outcome.plan.route is not Route.TAESD:
            assert distance(outcome.result, wanted) < 1e-5
        del outcome
    assert live_tensors() == before
    print(f"{operation} by {route.value}: {len(chosen)} of {counter.count} faults survived")


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", DEFAULT_ORDER)
def test_every_text_that_users_posted_on_every_rung(route: Route, operation: str) -> None:
    """In the middle of the work: what says, or may say, that memory ran out is survived; what does not is told."""
    vae, tiny = network(TINY), taesd() if route is Route.TAESD else None
    given, wanted = work(vae, route, operation)
    others = tuple(other for other in (Route.OFFLOAD, Route.CPU) if other is not route)
    order = Preference((Step((route,)), Step(others)))
    run = functools.partial(outcome_of, ladder(vae=vae, taesd=tiny, order=order), operation)
    with Allocations() as counter:
        run(given)
    for kind, _, *error in ROWS:
        failure, middle = error_of(*error), counter.count // 2
        with Allocations(middle, middle, lambda failure=failure: failure) as memory:
            if kind in ("DEVICE_LOST", "OTHER"):
                with pytest.raises(DeviceLost if kind == "DEVICE_LOST" else type(failure)):
                    run(given)
                continue
            outcome = run(given)
        assert memory.raised == 1
        (attempt,) = outcome.attempts
        assert attempt.plan.route is route
        assert isinstance(attempt, OutOfMemory if kind == "OUT_OF_MEMORY" else MaybeOutOfMemory)
        assert distance(outcome.result, wanted) < 1e-5
