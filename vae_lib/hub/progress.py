"""How far a download is."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vae_lib.units import size_text

Stage = Literal["waiting", "downloading", "retrying", "checking", "saving"]

# Seconds of recent history that the speed is taken from, and between two reports.
_WINDOW = 5.0
_INTERVAL = 0.1


@dataclass(frozen=True)
class Progress:
    """``done`` and ``total`` are bytes (``total`` None when the hub does not say), ``speed`` bytes per second
    over the last seconds, ``eta`` seconds. ``message`` is one line for people.
    """

    stage: Stage
    done: int
    total: int | None
    speed: float | None
    eta: float | None
    message: str

    @property
    def fraction(self) -> float | None:
        """From 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else None


Callback = Callable[[Progress], None]


class Meter:
    """Measures a download and tells its callback, at most ten times a second."""

    def __init__(self, callback: Callback | None, total: int | None) -> None:
        self._callback = callback
        self._total = total
        self._done = 0
        self._history: collections.deque[tuple[float, int]] = collections.deque()
        self._last_report = float("-inf")

    def start_at(self, done: int) -> None:
        """What is here already counts as done, and not towards the speed."""
        self._done = done
        self._history = collections.deque([(time.monotonic(), done)])

    def add(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        self._history.append((now, self._done))
        while len(self._history) > 2 and now - self._history[0][0] > _WINDOW:
            self._history.popleft()
        if now - self._last_report >= _INTERVAL or self._done == self._total:
            self._last_report = now
            self.report("downloading")

    def report(self, stage: Stage, message: str | None = None) -> None:
        if self._callback is None:
            return
        speed, eta = self._rate() if stage == "downloading" else (None, None)
        text = message or describe(self._done, self._total, speed, eta)
        self._callback(Progress(stage, self._done, self._total, speed, eta, text))

    def _rate(self) -> tuple[float | None, float | None]:
        if len(self._history) < 2:
            return None, None
        (start, before), (now, done) = self._history[0], self._history[-1]
        if now <= start or done <= before:
            return None, None
        speed = (done - before) / (now - start)
        return speed, (self._total - done) / speed if self._total is not None else None


def describe(done: int, total: int | None, speed: float | None, eta: float | None) -> str:
    """``120 of 335 MB, 5.2 MB/s, 41 s left``."""
    if total is None:
        text = size_text(done)
    else:
        goal = size_text(total)
        now = size_text(done)
        number, unit = now.rsplit(" ", 1)
        text = f"{number if goal.endswith(unit) else now} of {goal}"
    if speed is not None:
        text += f", {size_text(speed)}/s"
    if eta is not None:
        text += f", {time_text(eta)} left"
    return text


def time_text(seconds: float) -> str:
    """``41 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
