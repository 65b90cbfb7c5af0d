"""What matters most of the suite, in a few minutes on a GPU: all in one process, the most important first.

    python -m benchmarks.suite --device cuda --minutes 4

1. Our routes, each by the engine itself, beside the peers at 1024, 2048 and 512 pixels: time, peak, and the error
   against the plain network's picture in float32 on the same device (without TF32, whose products are as coarse as half
   precision's).
2. What the planner chooses when it is given the whole decode's peak, a half and a quarter of it: seconds and peak,
   predicted and measured. Planning and the search for NaN are in them, as in the extension's.
3. The same at 4096x4096 on a card of 6 GB with a UNet in it, beside diffusers' tiled decode.

A process for each system, as in ``benchmarks.compare``, would spend the minutes on starting; here each system finds the
memory as the one before left it, which is given back in between. Every result is printed and written when it comes, so
that a run that is cut off has its figures, and one that fails does not take the others with it. It needs nothing but
PyTorch and what it compares: a peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, report
from benchmarks.cap import Cap
from benchmarks.capped import GB
from benchmarks.peers import Decode, Missing
from benchmarks.systems import AUTOMATIC
from benchmarks.workload import SHAPES, Job, difference, machine, timed
from vae_lib.decode import Ladder
from vae_lib.device import DTYPES, PeakMemory, free_bytes, kinds
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.kind import Speeds
from vae_lib.device.memory import free_memory, release_cached
from vae_lib.engine import Compute, decode
from vae_lib.errors import PlanError
from vae_lib.latents import VAELatents
from vae_lib.networks import Network
from vae_lib.planning import Plan, Planner, Profile, Route
from vae_lib.planning.calibrate import measure_speeds
from vae_lib.planning.planner import MemoryOf

SIZES = (1024, 2048, 512)
ROUNDS, SECONDS = 5, 4.0  # for each system: so many rounds, or those that fit into so many seconds
PATIENCE = 3.0  # the smallest tiled plan that takes at most so many times the fastest one's predicted time
SHARES = (1.0, 0.5, 0.25)
FOR_REFERENCE = 15.0  # seconds that must be left for the largest picture's reference
ROUTES = (Route.FULL, Route.TILED, Route.OFFLOAD)
PEERS: dict[str, Callable[[Network, torch.device, torch.dtype], Decode]] = {
    "diffusers full": lambda vae, device, dtype: peers.diffusers(vae, device, dtype, "full"),
    "ldm full": peers.ldm,
}
BASE, TILED_PEER = "diffusers full", "diffusers tiled"
OURS = ("ours full", "ours tiled, smallest", "ours offload")


def result_name(device: str, dtype: str | None = None) -> str:
    """Of the files, without suffix: each card has its own, such as gpu-short-h100-80gb-hbm3-bf16."""
    if not device.startswith("cuda"):
        return f"{device}-short"
    card = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")
    name = "-".join(["gpu-short", *card.split()])
    return name if dtype in (None, "fp16") else f"{name}-{dtype}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pixels a side, in order")
    parser.add_argument("--shape", choices=[*SHAPES, "bundled"], default="sd")
    parser.add_argument("--dtype", choices=DTYPES, help="fp16 on a GPU, fp32 on the CPU")
    parser.add_argument("--cap", type=float, default=6, help="GB of the small card")
    parser.add_argument("--ballast", type=float, default=1.7, help="GB of it that a UNet takes")
    parser.add_argument("--capped-size", type=int, default=4096, help="pixels a side on the small card")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--output", type=Path, help="JSON file; a table goes beside it")
    options = parser.parse_args(arguments)
    end = time.perf_counter() + 60 * options.minutes
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "fp16")
    if options.output is None:
        name = result_name(options.device, options.dtype)
        options.output = Path(__file__).parent / "results" / f"{name}.json"
    with torch.inference_mode():
        _Short(options, end).run()


@dataclass(frozen=True)
class _Size:
    """What the systems are compared on at one size; no reference where it does not fit."""

    side: int
    latents: Tensor
    reference: Tensor | None


class _Short:
    def __init__(self, options: argparse.Namespace, end: float) -> None:
        self._options, self._end = options, end
        self._device, self._dtype = torch.device(options.device), DTYPES[options.dtype]
        self._peers: dict[str, Decode] = {}
        self._size: _Size | None = None
        self._result: dict[str, Any] = {
            "machine": machine(self._device) | _driver(self._device), "shape": options.shape, "dtype": options.dtype,
            "systems": [], "plans": [], "capped": [], "left_out": [],
        }  # fmt: skip

    def run(self) -> None:
        print(_headline(self._result), flush=True)
        sizes, cap = self._options.sizes, self._options.cap
        for size in sizes:
            for name in (*PEERS, *OURS):
                self._do("systems", partial(self._system, name, size), size=size, system=name)
        for size in sizes:
            for share in SHARES:
                self._do("plans", partial(self._planned, size, share), size=size, share=share)
        self._on_a_small_card(self._options.capped_size, cap)
        self._save()
        print(table(self._result), flush=True)

    def _do(self, section: str, step: Callable[[], dict[str, Any]], **record: Any) -> None:
        """One record of the result, unless the minutes are used up."""
        name = ", ".join(f"{key} {value}" for key, value in record.items())
        if self._left() <= 0:
            self._result["left_out"].append(f"{name}: the minutes were used up")
            return
        try:
            record |= step()
        except Missing as missing:
            self._result["left_out"].append(f"{name}: {missing}")
            print(self._result["left_out"][-1], flush=True)
            return
        except Exception as error:  # whatever it is, the next system's figures are worth having
            record["problem"] = _problem(error)
        release_cached(self._device)
        self._result[section].append(record)
        print(f"{name}: {_said(record)}", flush=True)
        self._save()

    def _left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()

    def _save(self) -> None:
        report.save(self._result, self._options.output, table(self._result))

    # what is compared

    @cached_property
    def _original(self) -> Network:
        """In float32 on the CPU: systems are made of copies, for some change what they are given."""
        return Job(self._options.shape, "fp32", 8, 1).vae()

    @cached_property
    def _vae(self) -> Network:
        return copy.deepcopy(self._original).to(self._device, self._dtype)

    @cached_property
    def _speeds(self) -> Speeds:
        """As the extension has them."""
        return measure_speeds(self._device, self._dtype)

    def _planner(self, memory: MemoryOf = free_memory) -> Planner:
        return Planner(memory, lambda work: replace(Profile.usual(work), speeds=self._speeds))

    def _latents(self, side: int) -> Tensor:
        return Job(self._options.shape, self._options.dtype, side, 1).latents(self._original)

    def _reference(self, side: int) -> Tensor | None:
        """The plain network's picture in float32, if it can be had."""
        try:
            vae = copy.deepcopy(self._original).to(self._device)
            with _without_tf32():
                return vae.decode(self._latents(side).to(self._device))
        except Exception as error:  # times and peaks are worth having without it
            print(f"{side}, reference: {_problem(error)}", flush=True)
            return None

    def _ready(self, side: int) -> _Size:
        """For a size, whose reference the systems share."""
        if self._size is None or self._size.side != side:
            self._size = None
            reference = self._reference(side)
            release_cached(self._device)
            self._size = _Size(side, self._latents(side).to(self._device, self._dtype), reference)
        return self._size

    def _plans(self, side: int) -> dict[str, Plan]:
        """Of `OURS`; the costs behind them are kept, so that asking again takes no time."""
        ladder = Ladder(self._vae, device=self._device, dtype=self._dtype)
        work = ladder.work("decode", side // 8, side // 8, 1)
        full, tiled, offload = (
            [plan for plan in self._planner().candidates(work, route) if plan.tiling is not None] for route in ROUTES
        )
        fastest = min(plan.seconds for plan in tiled)
        return {
            "ours full": next((p for p in full if p.is_whole), min(full, key=_seconds)),
            "ours tiled, smallest": min(
                (p for p in tiled if p.seconds <= PATIENCE * fastest), key=lambda p: p.peak_bytes
            ),
            "ours offload": min(offload, key=_seconds),
        }

    # the steps

    def _system(self, name: str, side: int) -> dict[str, Any]:
        size = self._ready(side)
        if name in PEERS:
            if name not in self._peers:
                self._peers[name] = PEERS[name](copy.deepcopy(self._original), self._device, self._dtype)
            return self._compared(self._peers[name], size)
        plan = self._plans(side)[name]
        tiling = plan.tiling
        assert tiling is not None
        compute = Compute(self._device, self._dtype)
        return _predicted(plan) | self._compared(lambda z: decode(self._vae, z, tiling, compute), size)

    def _planned(self, side: int, share: float) -> dict[str, Any]:
        """By the plan that is chosen where so much of the whole decode's peak is free."""
        size = self._ready(side)
        limit = round(share * self._plans(side)["ours full"].peak_bytes)
        ladder = self._ladder(lambda: limit)
        used: list[Plan] = []

        def run(latents: Tensor) -> Tensor:
            outcome = ladder.decode(VAELatents(latents))
            used.append(outcome.plan)
            return outcome.result

        measured = self._compared(run, size)
        return {"limit_bytes": limit, **_predicted(used[-1]), **measured}

    def _ladder(self, free: Callable[[], int]) -> Ladder:
        def budget(device: torch.device) -> int:
            return free() if device.type == self._device.type else free_bytes(device)

        return Ladder(self._vae, device=self._device, dtype=self._dtype, order=ROUTES, planner=self._planner(budget))

    def _on_a_small_card(self, side: int, gigabytes: float) -> None:
        """The reference, which needs the whole card, comes last: if there is time for it."""
        self._forget()
        cap = Cap(self._device, round(gigabytes * GB), round(self._options.ballast * GB))
        pictures: dict[str, Tensor] = {}
        for name in (AUTOMATIC, TILED_PEER):
            step = partial(self._capped, cap, name, side, pictures)
            self._do("capped", step, size=side, cap=gigabytes, system=name)
        cap.lift()
        if not pictures or self._left() < FOR_REFERENCE:
            return
        self._forget()
        reference = self._reference(side)
        for record in self._result["capped"]:
            if reference is not None and record["system"] in pictures:
                record |= difference(pictures[record["system"]].to(self._device), reference)

    def _forget(self) -> None:
        """What earlier systems left on the device, their weights too."""
        self._peers.clear()
        self._size = None
        vars(self).pop("_vae", None)
        release_cached(self._device)

    def _capped(self, cap: Cap, name: str, side: int, pictures: dict[str, Tensor]) -> dict[str, Any]:
        self._forget()
        latents = self._latents(side).to(self._device, self._dtype)
        with cap:
            if name == AUTOMATIC:
                ladder = self._ladder(cap.free)
                decoder: Decode = lambda z: ladder.decode(VAELatents(z)).result  # noqa: E731
            else:
                vae = copy.deepcopy(self._original)
                decoder = peers.diffusers(vae, self._device, self._dtype, "tiled")
            measured, picture = self._measured(decoder, latents)
        pictures[name] = picture.float().cpu()
        return measured

    def _compared(self, decoder: Decode, size: _Size) -> dict[str, Any]:
        measured, picture = self._measured(decoder, size.latents)
        return measured if size.reference is None else measured | difference(picture.float(), size.reference)

    def _measured(self, decoder: Decode, latents: Tensor) -> tuple[dict[str, Any], Tensor]:
        """After one decode that warms up: kernels are loaded and chosen, and the allocator has memory."""
        decoder(latents)
        seconds, began = list[float](), time.perf_counter()
        while not seconds or (len(seconds) < ROUNDS and time.perf_counter() - began < SECONDS and self._left() > 0):
            seconds.append(timed(lambda: decoder(latents), self._device).undisturbed(self._device))
        with PeakMemory(self._device) as peak:
            picture = decoder(latents)
        measured = {
            "seconds": statistics.median(seconds), "spread": [min(seconds), max(seconds)], "rounds": len(seconds),
            "peak_bytes": peak.bytes, "max_error": None, "psnr": None,
        }  # fmt: skip
        return measured, picture


def _seconds(plan: Plan) -> float:
    return plan.seconds


def _predicted(plan: Plan) -> dict[str, Any]:
    return {
        "plan": plan.describe(),
        "predicted_seconds": plan.seconds,
        "predicted_peak_bytes": plan.peak_bytes,
    }


def _problem(error: Exception) -> str:
    if is_out_of_memory(error) or isinstance(error, PlanError):
        print(str(error).splitlines()[0], file=sys.stderr, flush=True)
        return "out of memory"
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # of matrix products it is off by itself
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _driver(device: torch.device) -> dict[str, Any]:
    """Of a graphics card."""
    if device.type != "cuda":
        return {}
    total = torch.cuda.get_device_properties(device).total_memory
    return {"driver": kinds.of(device).driver(), "cuda": torch.version.cuda, "memory_bytes": total}


def _said(record: dict[str, Any]) -> str:
    if "problem" in record:
        return record["problem"]
    said = f"{record['seconds']:.3f} s, {record['peak_bytes'] / 2**20:.0f} MiB"
    return said if record["psnr"] is None else f"{said}, {record['psnr']:.0f} dB"


def _headline(result: dict[str, Any]) -> str:
    device = result["machine"]
    driver = f", {device['driver']}, CUDA {device['cuda']}" if "driver" in device else ""
    return (
        f"{device['device']}{driver}, PyTorch {device['torch']}, Python {device['python']}, {device['date']}; "
        f"shape {result['shape']}, {result['dtype']}."
    )


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [
        _headline(result),
        "Times are medians after one decode that warms up, on the CPU its time over PyTorch's threads. Peaks are the "
        "allocator's, beyond weights and latents (on the CPU: bytes of live tensors). Errors are to the plain "
        "network's picture in float32 on the same device, whose values span about 2. Ratios are to diffusers' full "
        "decode.",
        "",
        "| size | system | time (spread) | ratio | peak | ratio | predicted peak | predicted time | max error | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for record in result["systems"]:
        alike = (r for r in result["systems"] if r["size"] == record["size"])
        base: dict[str, Any] = next((r for r in alike if r["system"] == BASE), {})
        name = f"{record['system']} ({record['plan']})" if "plan" in record else record["system"]
        cells = [_time(record), _ratio(record, base, "seconds"), _mib(record, "peak_bytes")]
        cells += [_ratio(record, base, "peak_bytes"), _mib(record, "predicted_peak_bytes")]
        cells += [_number(record, "predicted_seconds", "{:.3f} s"), *_errors(record)]
        lines.append(_row(f"{record['size']}x{record['size']}", name, *cells))
    lines += [
        "",
        "The planner's choices where a share of the whole decode's peak is free:",
        "",
        "| size | free | plan | time (spread) | predicted of it | peak | predicted of it | max error | PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for record in result["plans"]:
        cells = [f"{record['share']:g}", record.get("plan", "-"), _time(record)]
        cells += [
            _of(record, "seconds"),
            _mib(record, "peak_bytes"),
            _of(record, "peak_bytes"),
            *_errors(record),
        ]
        lines.append(_row(f"{record['size']}x{record['size']}", *cells))
    if result["capped"]:
        lines += [
            "",
            "On a small card with a UNet in it:",
            "",
            "| size | card | system | time (spread) | peak | max error | PSNR |",
            "|---|---|---|---|---|---|---|",
        ]
    for record in result["capped"]:
        cells = [f"{record['cap']:g} GB", record["system"], _time(record), _mib(record, "peak_bytes")]
        lines.append(_row(f"{record['size']}x{record['size']}", *cells, *_errors(record)))
    if result["left_out"]:
        lines += ["", "Left out:", "", *(f"- {what}" for what in result["left_out"])]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(record: dict[str, Any], name: str, form: str, by: float = 1.0) -> str:
    value = record.get(name)
    return "-" if value is None else form.format(value / by)


def _mib(record: dict[str, Any], name: str) -> str:
    return _number(record, name, "{:.0f} MiB", 2**20)


def _errors(record: dict[str, Any]) -> list[str]:
    return [_number(record, "max_error", "{:.1e}"), _number(record, "psnr", "{:.0f} dB")]


def _time(record: dict[str, Any]) -> str:
    if "problem" in record:
        return record["problem"]
    low, high = record["spread"]
    return f"{record['seconds']:.3f} s ({low:.3f}-{high:.3f})"


def _ratio(record: dict[str, Any], base: dict[str, Any], name: str) -> str:
    return f"{record[name] / base[name]:.2f}" if record.get(name) and base.get(name) else "-"


def _of(record: dict[str, Any], name: str) -> str:
    """What was predicted over what was measured."""
    return f"{record[f'predicted_{name}'] / record[name]:.2f}" if record.get(name) else "-"


if __name__ == "__main__":
    main()
