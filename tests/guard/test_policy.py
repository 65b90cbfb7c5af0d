"""What the user asked for and set, as steps."""

from __future__ import annotations

import pytest

from vae_lib.engine import Operation
from vae_lib.guard import Request, Settings
from vae_lib.guard.generation import Generation
from vae_lib.guard.policy import of, preference
from vae_lib.planning import Route, Step

FALLBACK = (Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD)
ONLY_FULL = Step((Route.FULL,), trusts_prediction=False)
FIXED = Settings(fixed=True, threshold=4.0)


@pytest.mark.parametrize(
    ("request_", "settings", "steps"),
    [
        (Request(), Settings(), (Step((Route.FULL, *FALLBACK)),)),
        (Request(fallback=False), Settings(), (ONLY_FULL,)),
        (Request(), Settings(fallback=()), (ONLY_FULL,)),
        (Request(False, "Tiled"), Settings(), (Step((Route.TILED,), asked=True),)),
        (Request(False, "Full"), FIXED, (Step((Route.FULL,), trusts_prediction=False, asked=True),)),
        (
            Request(True, "CPU"),
            Settings(),
            (Step((Route.CPU,), asked=True), Step((Route.FULL, Route.TILED, Route.OFFLOAD, Route.TAESD))),
        ),
        (
            Request(),
            FIXED,
            (Step((Route.FULL,), False, 4 * 10**9), Step(FALLBACK), Step((Route.FULL,))),
        ),
        (
            Request(threshold=0.5),
            FIXED,
            (Step((Route.FULL,), False, 5 * 10**8), Step(FALLBACK), Step((Route.FULL,))),
        ),
    ],
)  # fmt: skip
def test_a_decode(request_: Request, settings: Settings, steps: tuple[Step, ...]) -> None:
    assert preference(request_, settings).steps == steps


def test_an_encode_asks_for_no_route() -> None:
    request = Request(True, "TAESD")
    assert preference(request, Settings(), Operation.ENCODE) == preference(Request(), Settings())
    assert preference(request, Settings(encode=False), Operation.ENCODE).steps == (ONLY_FULL,)


def test_a_video_is_decoded_exactly() -> None:
    exact = (Route.FULL, Route.TILED, Route.OFFLOAD, Route.CPU)
    for fallback in (True, False):
        current = Generation(None, Request(fallback, "TAESD"))
        assert of(current, Settings(), Operation.DECODE, is_video=True).steps == (Step(exact),)
    tiled = Generation(None, Request(False, "Tiled"))
    assert of(tiled, Settings(), Operation.DECODE, is_video=True) == of(tiled, Settings(), Operation.DECODE)
