"""The generation that the current thread is busy with: its request and what was done for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from vae_lib.decode import Outcome
from vae_lib.engine import Operation
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


class Again(Protocol):
    """On the processing object of a generation that only decodes kept latents.

    Attributes:
        route: how they were decoded, once they are ("full", ...).
        done: the same for the infotext.
        cancelled: asked while they are decoded.
        vae_in_use: whether the VAE in use decodes, instead of the one of their generation.
    """

    vae_in_use: bool
    route: str | None
    done: str | None
    cancelled: Callable[[], bool] | None

    def infotext(self, index: int, vae: Mapping[str, str | None]) -> str | None:
        """Of one picture, with the entries of the VAE that has decoded it now; None where none was kept."""


@dataclass(eq=False)
class Generation:
    """``p`` is the host's processing object.

    Attributes:
        promise: how long the latents of the batch that is being decoded are kept, as a sentence.
        is_first_pass: whether it is at the small picture that hires fix enlarges.
        fell_to_host: whether ours failed in the decode of the last batch, and the host's own gave the picture.
        is_black: whether a picture of the last batch came to NaN, in a host that goes on with a black one.
        token: what outlives it of the generation.
    """

    p: Any
    request: Request
    records: list[Record] = field(default_factory=list)
    promise: Callable[[], str] = str
    is_first_pass: bool = False
    fell_to_host: bool = False
    is_black: bool = False
    token: object = field(default_factory=object)

    @property
    def again(self) -> Again | None:
        """Set when kept latents are decoded, and nothing is sampled."""
        again: Again | None = getattr(self.p, "vae_guard_again", None)
        return again


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
