"""Which routes a device is trusted with: each is tried on a small picture before the first decode there.

Drivers and kernels do go wrong (ROCm, DirectML, MPS), and then with a picture of noise rather than an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vae_lib import __version__
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.memory import free_bytes, release_cached
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.programs.autoencoder_kl import Tiling
from vae_lib.networks import AutoencoderKL
from vae_lib.planning import calibrate
from vae_lib.planning.plan import WHOLE, Rates, cost_of, default_rates, dtype_name, plain_cost_of
from vae_lib.planning.route import Route
from vae_lib.planning.trial import Trial, device_name

SIDE = 256  # pixels
FILE = "checks.json"
# What the small check tries, and which routes go by it.
WAYS: tuple[tuple[Tiling, tuple[Route, ...]], ...] = (
    (Tiling(WHOLE), (Route.FULL,)),
    (Tiling(1 << 20), (Route.FULL, Route.TILED)),
    (Tiling(1 << 20, recompute=2), (Route.TILED,)),
    (Tiling(1 << 20, offload=True, attention_bytes=1 << 20), (Route.OFFLOAD,)),
)
_standings: dict[str, Standing] = {}  # of this process


def trusted_rates(vae: AutoencoderKL, compute: Compute, tell: Callable[[str], None]) -> Rates | None:
    """`rates_for` the device, with what the small check found out: what the plain network takes, and wrong routes.

    The check runs once for each device, driver, dtype, PyTorch and version of this package; it takes a second or two
    and about 200 MiB, and is left for another time where they are not free. A CPU is not checked: PyTorch's kernels
    there are those that this package was tested with.

    Args:
        vae: weights on the device, in the dtype; with one half, that one is tried.
        tell: given a sentence if a route is wrong.
    """
    rates = calibrate.rates_for(compute.device, compute.dtype)
    if compute.device.type == "cpu" or os.environ.get(calibrate.SWITCH) == "0":
        return rates
    operation = Operation.ENCODE if vae.decoder is None else Operation.DECODE
    key = f"{calibrate.device_key(compute.device, compute.dtype)}; {operation.value}; VAE Guard {__version__}"
    base = rates or default_rates(compute.device, compute.dtype)
    standing = _standings.get(key) or _read(key)
    if standing is None:
        standing = _small_check(vae, operation, compute, base)
        if standing is None:
            return rates
        path = calibrate.cache_path(FILE)
        calibrate.write_json(path, calibrate.read_json(path) | {key: asdict(standing)})
        if standing.wrong:
            tell(_warning(standing.wrong, compute))
    _standings[key] = standing
    return standing.applied_to(base)


@dataclass(frozen=True)
class Standing:
    """What the small check found out: two of the `Rates`, and the names of wrong routes."""

    dispatch_seconds: float
    plain: float
    wrong: tuple[str, ...] = ()

    def applied_to(self, rates: Rates) -> Rates:
        wrong = frozenset(map(Route, self.wrong))
        return replace(rates, dispatch_seconds=self.dispatch_seconds, plain=self.plain, wrong=wrong)


def _read(key: str) -> Standing | None:
    """What was found out before, if it is as it was written."""
    found: Any = calibrate.read_json(calibrate.cache_path(FILE)).get(key)
    try:
        wrong = tuple(Route(name).value for name in found["wrong"])
        standing = Standing(float(found["dispatch_seconds"]), float(found["plain"]), wrong)
    except (TypeError, KeyError, ValueError):
        return None
    return standing if all(0 < n < math.inf for n in (standing.dispatch_seconds, standing.plain)) else None


def _warning(wrong: Sequence[str], compute: Compute) -> str:
    names = " and ".join(Route(name).label for name in wrong)
    return (
        f"on this device ({device_name(compute.device)}, {dtype_name(compute.dtype)}) the {names} decode gives another "
        "picture than PyTorch's own way through the VAE, which is a fault of the driver or of PyTorch. It is not used "
        "here. 'python -m vae_lib check' shows more; a newer driver or PyTorch may help."
    )


def _small_check(vae: AutoencoderKL, operation: Operation, compute: Compute, rates: Rates) -> Standing | None:
    """None if it could not be done now, or if the plain network has no finite picture to hold others against."""
    trial = Trial(vae, operation, SIDE, Compute(compute.device, compute.dtype))
    if not vae.lies_on(compute.device, compute.dtype):
        return None
    plain_cost = plain_cost_of(trial.work)
    needed = max(plain_cost.peak_bytes, *(cost_of(trial.work, tiling).peak_bytes for tiling, _ in WAYS))
    try:
        if free_bytes(compute.device) < 2 * needed:
            return None
        given = trial.given()
        wanted = trial.plain(given)
        if not torch.isfinite(wanted).all():
            return None
        wrong: list[str] = []
        for tiling, routes in WAYS:
            if not _is_right(trial, given, wanted, tiling):
                wrong += [route.value for route in routes if route.value not in wrong]
        if Route.FULL.value not in wrong:
            rates = _with_real_dispatch(rates, trial, given)
        seconds = min(trial.timed(lambda: trial.plain(given))[1] for _ in range(3))
    except (RuntimeError, MemoryError):  # no memory, or the plain network itself does not run here
        release_cached(compute.device)
        return None
    return Standing(rates.dispatch_seconds, seconds / rates.seconds(plain_cost, apart=True), tuple(wrong))


def _with_real_dispatch(rates: Rates, trial: Trial, given: Tensor) -> Rates:
    """What an operation of a real decode takes to ask for, if this one took much longer than its arithmetic."""
    tiling, _ = WAYS[0]
    cost = cost_of(trial.work, tiling)
    seconds = min(trial.timed(lambda: trial.ours(given, tiling))[1] for _ in range(3))
    if seconds < 2 * rates.seconds(replace(cost, dispatches=0), apart=True):
        return rates
    return replace(rates, dispatch_seconds=seconds / cost.dispatches)


def _is_right(trial: Trial, given: Tensor, wanted: Tensor, tiling: Tiling) -> bool:
    """A way that fails for another reason than memory is no way here either."""
    try:
        return trial.same(trial.ours(given, tiling), wanted)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return False
