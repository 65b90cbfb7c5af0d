"""Answers that are work to compute, so that whoever asks all the time does not slow a generation down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Busy(Exception):
    """Nothing is computed now; ``seconds`` until it is worth asking again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Plans are being made already; ask again in {seconds:.0f} s.")
        self.seconds = seconds


class Sparing(Generic[Answer]):
    """One answer is computed at a time, and all of them take no more than a share of the time.

    Python computes it, of which there is one thread at a time: several would hold a generation up at every step.

    Args:
        share: of the time, in the long run. An answer holds until a new one takes no more than that.
        at_once: seconds of work that may come in one go after a rest.
        most: answers that are remembered.
    """

    def __init__(
        self,
        share: float = 0.05,
        at_once: float = 5.0,
        most: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share, self._at_once, self._most, self._clock = share, at_once, most, clock
        self._lock = threading.Lock()
        self._left, self._since = at_once, clock()
        self._answers: dict[Hashable, tuple[float, Answer]] = {}  # with the time until which it holds

    def answer(self, question: Hashable, compute: Callable[[], Answer]) -> Answer:
        """What ``compute`` gives, or gave a moment ago.

        Raises:
            Busy: at once, while another answer is computed, or when too much was.
        """
        known = self._answers.get(question)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if not self._lock.acquire(blocking=False):
            raise Busy(1)
        try:
            begin = self._clock()
            self._left = min(self._at_once, self._left + self._share * (begin - self._since))
            self._since = begin
            if self._left <= 0:
                raise Busy(max(1, -self._left / self._share))
            try:
                made = compute()
            finally:
                took = self._clock() - begin
                self._left -= took
            self._answers.pop(question, None)
            self._answers[question] = self._clock() + took / self._share, made
            if len(self._answers) > self._most:
                del self._answers[next(iter(self._answers))]
            return made
        finally:
            self._lock.release()
