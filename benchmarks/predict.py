"""Predicted against measured seconds of our ways to decode, with the default and the calibrated rates.

    python -m benchmarks.predict --sizes 256 512 -o benchmarks/results/predict.json

On the CPU the measured time is the process's CPU time over its threads, which other work on the machine stretches less
than the time on the clock; rates are measured anew, not taken from the cache.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch

from benchmarks import report
from benchmarks.systems import Place, by_plan
from benchmarks.workload import SHAPES, machine, timed
from vae_lib.decode import Ladder
from vae_lib.device import DTYPES, kinds
from vae_lib.networks import build
from vae_lib.planning import Planner, Profile, Route
from vae_lib.planning.calibrate import measure_speeds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="pixels along a side")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    rates = measure_speeds(device, dtype)
    print(f"default    {kinds.of(device).speeds(dtype)}\ncalibrated {rates}", flush=True)
    profile = Profile(device, dtype, rates)
    calibrated = Planner(profiles=lambda work: profile)
    vae = build(SHAPES["sd"]).eval().requires_grad_(False).to(device, dtype)
    records = []
    for size in options.sizes:
        latents = torch.randn(1, 4, size // 8, size // 8, device=device, dtype=dtype)
        for route in (Route.FULL, Route.TILED, Route.OFFLOAD):
            work = Ladder(vae, device=device, dtype=dtype).work("decode", size // 8, size // 8, 1)
            plan = min(calibrated.candidates(work, route), key=lambda plan: plan.seconds)
            default = next(p for p in Planner().candidates(work, route) if p.tiling == plan.tiling)
            decode = by_plan(vae, Place(device, dtype), plan, check_finite=False)
            timing = timed(functools.partial(decode, latents), device)
            measured = timing.undisturbed(device)
            records.append({
                "size": size, "route": route.value, "measured": measured, "clock": timing.seconds,
                "default": default.seconds, "calibrated": plan.seconds,
            })  # fmt: skip
            print(
                f"{size:5} {route.value:8} measured {measured:7.2f} s, default {default.seconds / measured:.2f} of it, "
                f"calibrated {plan.seconds / measured:.2f}",
                flush=True,
            )
            if options.output is not None:
                result = {"machine": machine(device), "dtype": options.dtype, "records": records}
                report.save(result, options.output)


if __name__ == "__main__":
    main()
