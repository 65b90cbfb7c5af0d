"""The generation that the current thread is busy with: its request and what was done for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vae_lib.decode import Operation, Outcome
from vae_lib.webui.request import Request


@dataclass(frozen=True)
class Record:
    """One decode or encode that was done, and whether it was another way than the one asked for."""

    operation: Operation
    outcome: Outcome
    fallback: bool
    note: str = ""

    def resembles(self, other: Record) -> bool:
        """Whether the same was done for the same reason, to another picture."""
        same = (self.operation, self.fallback, self.note) == (other.operation, other.fallback, other.note)
        mine, its = self.outcome.plan, other.outcome.plan
        return same and (mine.route, mine.band_rows) == (its.route, its.band_rows)


@dataclass
class Generation:
    """``p`` is the host's processing object, or None outside of one (an API call of ours)."""

    p: Any
    request: Request
    records: list[Record] = field(default_factory=list)

    def comment(self, text: str) -> None:
        if self.p is not None:
            self.p.comment(text)


class _Stack(threading.local):
    def __init__(self) -> None:
        self.items: list[Generation] = []


_stack = _Stack()


def current() -> Generation | None:
    """The innermost generation of this thread; scripts may run one inside another."""
    return _stack.items[-1] if _stack.items else None


@contextmanager
def running(p: Any, request: Request) -> Iterator[Generation]:
    """Make a generation the current one of this thread."""
    generation = Generation(p, request)
    _stack.items.append(generation)
    try:
        yield generation
    finally:
        _stack.items.pop()
