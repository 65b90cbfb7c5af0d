"""The planner's choice, said in a line: for so many free bytes, on a device of such a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vae_lib.device.kind import Speeds
from vae_lib.planning import DEFAULT_ORDER, Plan, Planner, Profile, Route, Work


def planner(
    free: int | None = None,
    cpu_free: int | None = None,
    profile: Profile | Speeds | None = None,
    **options: float,
) -> Planner:
    """``cpu_free`` is main memory's, and ``free`` any other device's; a profile is that of every device but the CPU."""

    def memory(device: torch.device) -> int | None:
        return cpu_free if device.type == "cpu" and cpu_free is not None else free

    def profiles(work: Work) -> Profile:
        if isinstance(profile, Speeds):
            return replace(Profile.usual(work), speeds=profile)
        return profile or Profile.usual(work)

    return Planner(memory, profiles, **options)


def choose(
    work: Work,
    free: int | None,
    *,
    order: Sequence[Route] = DEFAULT_ORDER,
    cpu_free: int = 1 << 50,
    profile: Profile | Speeds | None = None,
    patience: float = 20.0,
) -> Plan:
    if work.device == work.spare:
        cpu_free = 1 << 50 if free is None else free
    return planner(free, cpu_free, profile, patience=patience).choose(work, order)


def candidates(work: Work, route: Route, profile: Profile | Speeds | None = None) -> list[Plan]:
    return planner(profile=profile).candidates(work, route)


def smallest(work: Work, order: Sequence[Route] = DEFAULT_ORDER) -> Plan | None:
    return Planner().smallest(work, order)
