"""A flood of questions costs a share of the time, and an ordinary number of them is answered at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from vae_lib.webui.sparing import Busy, Sparing


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], int]:
        """Something that takes so long; gives how often it was done."""
        times = [0]

        def done() -> int:
            self.now += seconds
            times[0] += 1
            return times[0]

        return done


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_same_question_is_answered_as_before_for_a_while(clock: Clock) -> None:
    plans, work = Sparing[int](share=0.1, clock=clock), clock.work(0.5)
    assert [plans.answer("a", work) for _ in range(3)] == [1, 1, 1]
    clock.now += 5.1
    assert plans.answer("a", work) == 2
    assert plans.answer("b", work) == 3


def test_a_flood_takes_its_share_and_no_more(clock: Clock) -> None:
    plans, work, refused = Sparing[int](share=0.05, at_once=5, clock=clock), clock.work(1.7), 0
    made = 0
    for number in range(10_000):  # each another question
        clock.now += 0.1
        try:
            made = plans.answer(number, work)
        except Busy as error:
            refused += 1 <= error.seconds < 60
    assert made * 1.7 < 0.06 * clock.now
    assert refused > 9000


def test_ordinary_questions_are_answered_at_once_and_again_after_a_rest(clock: Clock) -> None:
    plans, work = Sparing[int](clock=clock), clock.work(0.1)
    assert [plans.answer(number, work) for number in range(40)] == list(range(1, 41))
    clock.now += 100
    assert [plans.answer(-number, work) for number in range(1, 41)] == list(range(41, 81))


def test_only_one_is_computed_at_a_time_and_others_are_told_at_once() -> None:
    plans, begun, go_on = Sparing[str](), threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go_on.wait(60)
        return "slow"

    thread = threading.Thread(target=lambda: plans.answer("a", slow))
    thread.start()
    begun.wait(60)
    with pytest.raises(Busy, match=r"ask again in 1 s\."):
        plans.answer("b", lambda: "b")
    go_on.set()
    thread.join(60)
    assert plans.answer("b", lambda: "b") == "b"


def test_what_fails_counts_as_well_and_few_answers_are_remembered(clock: Clock) -> None:
    plans = Sparing[int](at_once=1, most=2, clock=clock)

    def fails() -> int:
        clock.now += 2
        raise ValueError

    with pytest.raises(ValueError):
        plans.answer("a", fails)
    with pytest.raises(Busy):
        plans.answer("b", clock.work(0))
    clock.now += 1000
    work = clock.work(0.01)
    assert [plans.answer(name, work) for name in "abca"] == [1, 2, 3, 4]
