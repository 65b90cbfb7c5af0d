"""What came of a decode or encode, and how."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vae_lib.planning.events import Asked, Attempt, Event
from vae_lib.planning.plan import Plan


@dataclass(frozen=True)
class Outcome:
    """A finished piece of work.

    Attributes:
        result: pictures (B, 3, H, W) in [-1, 1], not clamped; or latents (B, C, h, w): the mean, not scaled, for a
            full VAE, scaled for TAESD. Made by the CPU it is still there if the device has no room even for it.
        log_variance: when encoding by a full VAE, (B, C, h, w), clamped to [-30, 20].
        plan: the one that worked.
        seconds: what it took.
        events: why it was this one: what was asked for, what failed, what spoke against the routes before it, in order.
        scaled: whether ``result`` are latents that carry the scaling factor already (TAESD).
    """

    result: Tensor
    plan: Plan
    seconds: float
    events: tuple[Event, ...] = ()
    log_variance: Tensor | None = None
    scaled: bool = False

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The plans that were attempted before and failed."""
        return tuple(event for event in self.events if isinstance(event, Attempt))

    @property
    def repaired(self) -> bool:
        """Whether numbers overflowed in one dtype and another held them."""
        return any(attempt.plan.dtype != self.plan.dtype for attempt in self.attempts)

    @property
    def fell_back(self) -> bool:
        """Whether it is another route than the preferred one, or the one that was asked for."""
        return any(not isinstance(event, Asked) for event in self.events)
