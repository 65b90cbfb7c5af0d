"""What happened before a picture was there, as facts: the words for it are made in one place (``decode.wording``)."""

from __future__ import annotations

from dataclasses import dataclass

from vae_lib.planning.plan import Plan
from vae_lib.planning.route import Objection, Route


@dataclass(frozen=True)
class Asked:
    """The user asked for this route."""

    route: Route


@dataclass(frozen=True)
class BelowThreshold:
    """Less was free, in bytes, than the user's threshold for the full decode."""

    free_bytes: int
    threshold_bytes: int


@dataclass(frozen=True)
class OutOfMemory:
    """The plan was attempted, and memory ran out although it was predicted to suffice."""

    plan: Plan


@dataclass(frozen=True)
class MaybeOutOfMemory:
    """The plan was attempted, and failed of what may have been too little memory; what the device said, in a line."""

    plan: Plan
    said: str


@dataclass(frozen=True)
class Overflow:
    """The plan was attempted, and gave NaN or infinite numbers in its dtype."""

    plan: Plan


@dataclass(frozen=True)
class NoScratch:
    """The plan was attempted, and there was no space for the activations that it keeps on disk; why, in a sentence."""

    plan: Plan
    problem: str


Attempt = OutOfMemory | MaybeOutOfMemory | Overflow | NoScratch
Event = Asked | BelowThreshold | Attempt | Objection
