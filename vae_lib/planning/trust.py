"""Which routes a device is trusted with: each is checked on a small picture before the first decode there.

Drivers and kernels do go wrong (ROCm, DirectML, MPS), and then with a picture of noise rather than an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vae_lib.device.dtypes import dtype_name
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.memory import free_bytes, release_cached
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.passes import Tiling
from vae_lib.networks import Network
from vae_lib.planning.plan import WHOLE, cost_of, plain_cost_of
from vae_lib.planning.profile import Profile
from vae_lib.planning.route import Route
from vae_lib.planning.trial import Trial, device_name

SIDE = 256  # pixels
# What the small check tries, and which routes go by it.
_TRIALS: tuple[tuple[Tiling, tuple[Route, ...]], ...] = (
    (Tiling(WHOLE), (Route.FULL,)),
    (Tiling(1 << 20), (Route.FULL, Route.TILED)),
    (Tiling(1 << 20, recompute=2), (Route.TILED,)),
    (Tiling(1 << 20, offload=True, attention_bytes=1 << 20), (Route.OFFLOAD,)),
)


@dataclass(frozen=True)
class Standing:
    """What the small check found: two figures of the `Profile`, and the names of wrong routes."""

    dispatch_seconds: float
    plain: float
    wrong: tuple[str, ...] = ()

    @classmethod
    def read(cls, entry: Any) -> Standing | None:
        """What was found before, if it is as it was written."""
        try:
            wrong = tuple(Route.named(name).value for name in entry["wrong"])
            standing = cls(float(entry["dispatch_seconds"]), float(entry["plain"]), wrong)
        except (TypeError, KeyError, ValueError):
            return None
        return standing if all(0 < n < math.inf for n in (standing.dispatch_seconds, standing.plain)) else None

    def applied_to(self, profile: Profile) -> Profile:
        speeds = profile.speeds._replace(dispatch_seconds=self.dispatch_seconds)
        distrusted = frozenset(map(Route.named, self.wrong))
        return replace(profile, speeds=speeds, plain=self.plain, distrusted=distrusted)


def warning(wrong: Sequence[str], compute: Compute) -> str:
    names = " and ".join(Route.named(name).label for name in wrong)
    return (
        f"on this device ({device_name(compute.device)}, {dtype_name(compute.dtype)}) the {names} decode does not "
        "match PyTorch's own decode, which is a fault of the driver or of PyTorch. It is not used here. 'python -m "
        "vae_lib check' shows more; a newer driver or PyTorch may help."
    )


def small_check(vae: Network, operation: Operation, compute: Compute, profile: Profile) -> Standing | None:
    """None if it could not be done now, or if the plain network has no finite picture to hold others against."""
    trial = Trial(vae, operation, SIDE, Compute(compute.device, compute.dtype))
    if not vae.lies_on(compute.device, compute.dtype):
        return None
    plain_cost = plain_cost_of(trial.work)
    needed = max(plain_cost.peak_bytes, *(cost_of(trial.work, tiling).peak_bytes for tiling, _ in _TRIALS))
    try:
        if free_bytes(compute.device) < 2 * needed:
            return None
        given = trial.given()
        wanted = trial.plain(given)
        if not torch.isfinite(wanted).all():
            return None
        wrong: list[str] = []
        for tiling, routes in _TRIALS:
            if not _is_right(trial, given, wanted, tiling):
                wrong += [route.value for route in routes if route.value not in wrong]
        if Route.FULL.value not in wrong:
            profile = _with_real_dispatch(profile, trial, given)
        seconds = min(trial.timed(lambda: trial.plain(given))[1] for _ in range(3))
    except (RuntimeError, MemoryError):  # no memory, or the plain network itself does not run here
        release_cached(compute.device)
        return None
    return Standing(profile.speeds.dispatch_seconds, seconds / profile.seconds(plain_cost), tuple(wrong))


def _with_real_dispatch(profile: Profile, trial: Trial, given: Tensor) -> Profile:
    """What an operation of a real decode takes to ask for, if this one took much longer than its arithmetic."""
    tiling, _ = _TRIALS[0]
    cost = cost_of(trial.work, tiling)
    seconds = min(trial.timed(lambda: trial.ours(given, tiling))[1] for _ in range(3))
    if seconds < 2 * profile.seconds(replace(cost, dispatches=0)):
        return profile
    return replace(profile, speeds=profile.speeds._replace(dispatch_seconds=seconds / cost.dispatches))


def _is_right(trial: Trial, given: Tensor, wanted: Tensor, tiling: Tiling) -> bool:
    """A route that fails for another reason than memory is none here either."""
    try:
        return trial.same(trial.ours(given, tiling), wanted)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
