"""Does each route give the plain network's picture on this device, how fast, and in how much memory?

What `python -m vae_lib check` and the button of the tab's memory section run.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_lib import __version__
from vae_lib.decode.wording import time_text
from vae_lib.device import dtype_name, kinds
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.measure import PeakMemory
from vae_lib.device.memory import free_bytes, release_cached
from vae_lib.engine.compute import Compute, Operation
from vae_lib.errors import Cancelled, PlanError
from vae_lib.networks import Network
from vae_lib.planning import PROFILES, Plan, Planner, Profile, Route, Work
from vae_lib.planning.plan import cost_of, plain_cost_of
from vae_lib.planning.route import ON_DEVICE
from vae_lib.planning.trial import Trial, device_name
from vae_lib.units import size_text

SIZES, CPU_SIZES = (256, 512, 1024), (128, 256, 512)  # pixels along a side
PROBE = 32  # pixels of the picture that says how fast the device is
_HEAD = ("Size", "Route", "Largest difference", "Time", "Of plain's time", "Memory", "Predicted", "Operations")
RUNS, CPU_RUNS = 40, 11  # decodes of the plain network that the check of one size takes as long as


@dataclass(frozen=True)
class Finding:
    """One route at one size.

    Attributes:
        what: the plan in words.
        side: pixels.
        error: largest difference from the plain network's picture, of a range of 2; None if it failed.
        same: whether it is the same picture but for rounding.
        seconds, plain_seconds: of this route, and of the plain network.
        peak_bytes, predicted_bytes: beyond weights and input.
        dispatches: operations that PyTorch is asked for.
        problem: why it failed.
        route: of the plan.
    """

    what: str
    side: int
    plain_seconds: float
    error: float | None = None
    same: bool = False
    seconds: float = 0.0
    peak_bytes: int = 0
    predicted_bytes: int = 0
    dispatches: int = 0
    problem: str = ""
    route: Route | None = None


@dataclass(frozen=True)
class Limits:
    """How far a check may go: seconds in all, pixels along a side (none: what suits the device), bytes on a device."""

    seconds: float = 60.0
    sizes: Sequence[int] = ()
    budget: Callable[[torch.device], int] = free_bytes


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        machine: device, driver, PyTorch, dtype, system; no paths and no names of the user's.
        findings: in the order in which they were made.
        left_out: sizes in pixels for which there was no time or memory.
    """

    machine: str
    findings: tuple[Finding, ...]
    left_out: tuple[int, ...] = ()

    @property
    def is_wrong(self) -> bool:
        """Whether a route gives another picture than the plain network."""
        return any(finding.error is not None and not finding.same for finding in self.findings)

    @property
    def verdict(self) -> str:
        """In a sentence or two."""
        if not self.findings:
            return (
                "Nothing could be checked: there is too little free memory, or this type is too slow here for the time "
                "allowed. Free some memory, allow more time, or choose another type."
            )
        wrong = sorted({f.what for f in self.findings if f.error is not None and not f.same})
        failed = sorted({f.what for f in self.findings if f.problem})
        if wrong:
            return (
                f"{' and '.join(wrong)}: the picture is not the plain network's. This device or its driver computes "
                "something wrong. Please report it with this text, and decode by another route until it is mended."
            )
        if failed:
            return f"{' and '.join(failed)} could not be run here; every other route gives the plain network's picture."
        low = [f for f in self.findings if f.peak_bytes > f.predicted_bytes]
        fast = [f for f in self.findings if f.route is Route.FULL]
        times = statistics.median(f.seconds / f.plain_seconds for f in fast) if fast else 1.0
        speed = f"full takes {times:.2f} of the plain network's time"
        memory = "no more memory than predicted" if not low else "more memory than predicted; please report that"
        return f"Every route gives the plain network's picture. {speed[0].upper()}{speed[1:]}, and {memory}."

    @property
    def remark(self) -> str:
        """What was left out, in a sentence; "" if nothing was."""
        sizes = ", ".join(f"{side}x{side}" for side in self.left_out)
        return f"Left out for lack of time or memory: {sizes}." if sizes else ""

    def rows(self) -> list[list[str]]:
        """As text, the headings first."""
        rows = [list(_HEAD)]
        for f in self.findings:
            cells = [f"{f.side}x{f.side}", f.what]
            if f.problem:
                rows.append([*cells, f.problem, *[""] * 5])
                continue
            rows.append([
                *cells, f"{f.error:.1e}" + ("" if f.same else " WRONG"), time_text(f.seconds),
                f"{f.seconds / f.plain_seconds:.2f}", size_text(f.peak_bytes), size_text(f.predicted_bytes),
                f"{f.dispatches:,}",
            ])  # fmt: skip
        return rows

    def text(self) -> str:
        """To read, or to copy into an issue."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if not self.findings:
            lines = []
        return "\n".join([self.machine, *lines, *filter(None, [self.remark]), self.verdict])


def check(
    vae: Network,
    operation: Operation,
    compute: Compute,
    limits: Limits,
    said: Callable[[str], None] = lambda text: None,
) -> Report:
    """Try every route at each size beside the plain network, as long as the time and the free memory allow.

    Args:
        vae: weights on the device, in the dtype.
        said: given what is checked next.

    Raises:
        Cancelled: when ``compute.cancelled`` says so.
        PlanError: when the plain network does not run on the device.
    """
    return _Check(vae, operation, compute, limits, said).run()


class _Check:
    """One check; what it may still do depends on the clock."""

    def __init__(
        self,
        vae: Network,
        operation: Operation,
        compute: Compute,
        limits: Limits,
        said: Callable[[str], None],
    ) -> None:
        self._vae, self._operation, self._compute = vae, operation, compute
        self._limits, self._said = limits, said
        self._end = time.perf_counter() + limits.seconds
        self._on_cpu = kinds.of(compute.device).in_main_memory
        self._findings: list[Finding] = []
        self._left_out: list[int] = []

    def run(self) -> Report:
        sizes = self._limits.sizes or (CPU_SIZES if self._on_cpu else SIZES)
        per_pixel = self._plain_seconds(PROBE) / PROBE**2
        for side in sizes:
            expected = (CPU_RUNS if self._on_cpu else RUNS) * per_pixel * side**2
            needed = plain_cost_of(self._trial(side).work).peak_bytes * 1.2
            is_late = time.perf_counter() + expected > self._end
            if is_late or needed > self._limits.budget(self._compute.device):
                self._left_out.append(side)
                continue
            try:
                per_pixel = self._size(self._trial(side)) / side**2
            except Cancelled:
                if self._is_cancelled():
                    raise
                self._left_out.append(side)  # the time was over in the middle of it
        return Report(machine(self._compute), tuple(self._findings), tuple(self._left_out))

    def _trial(self, side: int) -> Trial:
        late = Compute(self._compute.device, self._compute.dtype, cancelled=self._is_late)
        return Trial(self._vae, self._operation, side, late)

    def _is_cancelled(self) -> bool:
        return self._compute.cancelled is not None and self._compute.cancelled()

    def _is_late(self) -> bool:
        return time.perf_counter() > self._end or self._is_cancelled()

    def _plain_seconds(self, side: int) -> float:
        """Of the plain network, warm, but not for longer than it takes to see that it is slow."""
        self._said(f"{side}x{side}, plain network")
        trial, seconds = self._trial(side), math.inf
        given = trial.given()
        for _ in range(3):
            seconds = min(seconds, trial.timed(lambda: self._plain(trial, given))[1])
            if seconds > self._limits.seconds / 20:
                break
        return seconds

    def _plain(self, trial: Trial, given: Tensor) -> Tensor:
        try:
            return trial.plain(given)
        except (RuntimeError, MemoryError) as error:
            release_cached(trial.compute.device)
            reason = "there is no memory for it" if is_out_of_memory(error) else str(error).splitlines()[0][:90]
            raise PlanError(
                f"PyTorch's own decode does not run on {device_name(trial.compute.device)} in "
                f"{dtype_name(trial.compute.dtype)} ({reason}), so that there is nothing to compare with. Free some "
                "memory, or choose another type or device."
            ) from error

    def _size(self, trial: Trial) -> float:
        """Every route at one size; seconds of the plain network."""
        self._said(f"{trial.side}x{trial.side}, plain network")
        given = trial.given()
        wanted, seconds = trial.timed(lambda: self._plain(trial, given))
        for plan in _plans(trial.work):
            if self._is_late():
                raise Cancelled("Stopped: the check was not finished.")
            self._said(f"{trial.side}x{trial.side}, {plan.describe()}")
            finding = self._found(trial, plan, given, wanted)
            self._findings.append(finding)
            if not finding.problem:
                seconds = min(seconds, finding.plain_seconds)
        return seconds

    def _found(self, trial: Trial, plan: Plan, given: Tensor, wanted: Tensor) -> Finding:
        assert plan.tiling is not None
        tiling, device = plan.tiling, trial.compute.device
        finding = Finding(plan.describe(), trial.side, 0.0, predicted_bytes=plan.peak_bytes, route=plan.route)
        ours, plains = [], []
        try:
            if not self._on_cpu:
                trial.ours(given, tiling)  # kernels are loaded and chosen
            with PeakMemory(device) as peak:
                result = trial.ours(given, tiling)
            error, same = (result - wanted).abs().max().item(), trial.same(result, wanted)
            del result
            for _ in range(1 if self._on_cpu else 3):  # in turn, so that other work on the machine meets both
                ours.append(trial.timed(lambda: trial.ours(given, tiling))[1])
                plains.append(trial.timed(lambda: self._plain(trial, given))[1])
        except (RuntimeError, MemoryError) as problem:
            release_cached(device)  # an operation that this device lacks, or no memory for it
            short = "out of memory" if is_out_of_memory(problem) else str(problem).splitlines()[0][:90]
            return replace(finding, problem=short)
        return replace(
            finding,
            plain_seconds=min(plains),
            error=error,
            same=same,
            seconds=min(ours),
            peak_bytes=peak.bytes,
            dispatches=cost_of(trial.work, tiling).dispatches,
        )


def _speeds_only(work: Work) -> Profile:
    """Whatever was found wrong before is checked again."""
    return replace(PROFILES(work), distrusted=frozenset(), plain=0.0)


def _plans(work: Work) -> Iterator[Plan]:
    """Of each route the fastest, and of tiled the one that takes the least of those that are not unreasonably slow."""
    planner = Planner(profiles=_speeds_only)
    for route in ON_DEVICE:
        plans = planner.candidates(work, route)
        fastest = min(plans, key=lambda plan: plan.seconds)
        if route is Route.TILED:
            plans = [plan for plan in plans if plan.seconds <= 2 * fastest.seconds]
            fastest = min(plans, key=lambda plan: plan.peak_bytes)
        yield fastest


def machine(compute: Compute) -> str:
    """What a report holds for; no paths, and no name of the computer's or the user's."""
    kind = kinds.of(compute.device)
    processor = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    name = f"{kind.card(compute.device)}, {kind.driver() or processor}"
    return (
        f"VAE Guard {__version__}; {name}; PyTorch {torch.__version__}; {dtype_name(compute.dtype)}; "
        f"{platform.system()}; Python {platform.python_version()}"
    )
