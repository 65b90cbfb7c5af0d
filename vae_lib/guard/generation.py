"""The generation that the current thread is busy with: its request and what was done for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vae_lib.decode import Operation, Outcome
from vae_lib.guard.request import Request


@dataclass(frozen=True)
class Record:
    """One decode or encode that was done."""

    operation: Operation
    outcome: Outcome

    def resembles(self, other: Record) -> bool:
        """Whether the same was done for the same reasons, to another picture."""
        return self._gist() == other._gist()

    def _gist(self) -> tuple[Any, ...]:
        plan = self.outcome.plan
        return self.operation, plan.route, plan.band_rows, tuple(map(type, self.outcome.events))


@dataclass
class Generation:
    """``p`` is the host's processing object, or None outside of one (an API call of ours).

    Attributes:
        fell_to_host: whether ours failed in the decode of the last batch, and the host's own gave the picture.
    """

    p: Any
    request: Request
    records: list[Record] = field(default_factory=list)
    fell_to_host: bool = False


class Generations(threading.local):
    """Those of each thread; scripts may run one inside another."""

    def __init__(self) -> None:
        self._stack: list[Generation] = []

    @property
    def current(self) -> Generation | None:
        """The innermost of this thread."""
        return self._stack[-1] if self._stack else None

    @contextmanager
    def running(self, p: Any, request: Request) -> Iterator[Generation]:
        """Make a generation the current one of this thread."""
        generation = Generation(p, request)
        self._stack.append(generation)
        try:
            yield generation
        finally:
            self._stack.pop()
