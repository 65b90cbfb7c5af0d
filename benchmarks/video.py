"""A video by Wan 2.1's VAE: memory, multiplications, time and error, diffusers' beside ours, on the same weights.

    python -m benchmarks.video --json benchmarks/results/video.json

Memory and multiplications are of 1280x720 in bf16. Diffusers' AutoencoderKLWan runs on PyTorch's meta device: most
bytes of tensors alive at once beyond weights and latents, and the multiplications of convolutions and products;
attention counts as one fused kernel. Ours are what our planner counts, which a test holds against what is allocated.
The finished video lies in main memory: it is not counted, nor is diffusers'. CPU time and error are of a small video in
fp32 by one thread, random weights of full width; the two take turns.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import report
from benchmarks.dispatch import META, as_on_cuda
from benchmarks.workload import difference, machine, timed
from vae_lib.device import PeakMemory
from vae_lib.engine import Compute, Operation, Tiling, decode
from vae_lib.guard.borrow import network_of
from vae_lib.networks import Network
from vae_lib.planning import Plan, Planner, Route, Work
from vae_lib.planning.plan import cost_of

SIZE, FRAMES = (720, 1280), 81
SMALL, FEW = (256, 256), 9
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def networks(device: torch.device, dtype: torch.dtype) -> tuple[Any, Network]:
    """Diffusers', and ours with its weights."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    with device:
        theirs = AutoencoderKLWan().to(dtype).eval().requires_grad_(False)
    return theirs, network_of(theirs.state_dict(), ("",), video=True)


def latents(frames: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, 16, T, h, w)"""
    generator = torch.Generator().manual_seed(1)
    shape = 1, 16, 1 + (frames - 1) // 4, size[0] // 8, size[1] // 8
    if device == META:
        return torch.empty(shape, dtype=dtype, device=META)
    return torch.randn(shape, generator=generator).to(dtype)


@torch.no_grad()
def counted() -> list[dict[str, Any]]:
    theirs, ours = networks(META, torch.bfloat16)
    z = latents(FRAMES, SIZE, META, torch.bfloat16)
    with as_on_cuda(), PeakMemory(META) as peak:
        made = theirs.decode(z).sample
    print(f"diffusers: {peak.bytes - made.nbytes} bytes", file=sys.stderr, flush=True)
    with FlopCounterMode(display=False) as flops:
        theirs.decode(z)
    records = [{
        "system": "diffusers", "peak_bytes": peak.bytes - made.nbytes,
        "multiplications": flops.get_total_flops() // 2, "dispatches": None,
    }]  # fmt: skip
    height, width = z.shape[3:]
    work = Work(ours.config, Operation.DECODE, height, width, z.shape[2], CUDA, torch.bfloat16, output_on_device=False)
    for name, plan in plans(work).items():
        assert plan.tiling is not None
        cost = cost_of(work, plan.tiling)
        records.append({
            "system": name, "peak_bytes": cost.peak_bytes, "multiplications": cost.multiplications,
            "dispatches": cost.dispatches,
        })  # fmt: skip
    return records


def plans(work: Work) -> dict[str, Plan]:
    planner = Planner()
    by_route = {route: planner.candidates(work, route) for route in (Route.FULL, Route.TILED, Route.OFFLOAD)}
    fastest = min(by_route[Route.FULL], key=lambda plan: plan.seconds)
    smallest = {
        f"ours {route.label}, smallest": min(made, key=lambda plan: plan.peak_bytes)
        for route, made in by_route.items()
        if route is not Route.FULL
    }
    return {"ours full": fastest, **smallest}


@torch.no_grad()
def measured(rounds: int) -> list[dict[str, Any]]:
    theirs, ours = networks(CPU, torch.float32)
    z = latents(FEW, SMALL, CPU, torch.float32)
    compute = Compute(CPU, torch.float32)
    made: dict[str, Tensor] = {}

    def by_diffusers() -> None:
        made["diffusers"] = theirs.decode(z).sample[0].transpose(0, 1)

    def by_ours(name: str, tiling: Tiling) -> None:
        made[name] = decode(ours, z[0].transpose(0, 1), tiling, compute).clamp_(-1, 1)

    work = Work(ours.config, Operation.DECODE, z.shape[3], z.shape[4], z.shape[2], CPU, torch.float32)
    tilings = {name: plan.tiling for name, plan in plans(work).items() if plan.tiling is not None}
    times: dict[str, list[float]] = {name: [] for name in ("diffusers", *tilings)}
    for _ in range(rounds):
        times["diffusers"].append(timed(by_diffusers, CPU).cpu_seconds)
        print(times, file=sys.stderr, flush=True)
        for name, tiling in tilings.items():
            run = functools.partial(by_ours, name, tiling)
            times[name].append(timed(run, CPU).cpu_seconds)
    return [
        {"system": name, "cpu_seconds": statistics.median(seconds), **difference(made[name], made["diffusers"])}
        for name, seconds in times.items()
    ]


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    here = result["machine"]
    (height, width), (low, narrow) = SIZE, SMALL
    theirs, timed_theirs = result["counted"][0], result["measured"][0]
    lines = [
        f"Wan 2.1's VAE, {FRAMES} frames of {width}x{height} in bf16, counted without a GPU; beyond weights, latents "
        "and the finished video. Diffusers on PyTorch's meta device, ours by our planner.",
        "",
        "| system | memory | ratio | multiplications | ratio | operations |",
        "|---|---|---|---|---|---|",
    ]
    for record in result["counted"]:
        lines.append(
            f"| {record['system']} | {record['peak_bytes'] / 2**20:.0f} MiB "
            f"| {record['peak_bytes'] / theirs['peak_bytes']:.2f} | {record['multiplications'] / 1e12:.0f} T "
            f"| {record['multiplications'] / theirs['multiplications']:.2f} | {record['dispatches'] or '-'} |"
        )
    lines += [
        "",
        f"{FEW} frames of {narrow}x{low} in fp32, one thread: {here['device']}, PyTorch {here['torch']}, "
        f"{here['date']}. CPU time; the error is to diffusers' video, whose values span 2.",
        "",
        "| system | CPU time | ratio | max error |",
        "|---|---|---|---|",
    ]
    for record in result["measured"]:
        lines.append(
            f"| {record['system']} | {record['cpu_seconds']:.1f} s "
            f"| {record['cpu_seconds'] / timed_theirs['cpu_seconds']:.2f} | {record['max_error']:.1e} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the figures; the table goes beside it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = {"machine": machine(CPU), "counted": counted(), "measured": measured(options.rounds)}
    if options.json is not None:
        report.save(result, options.json, table(result))
    print(table(result))


if __name__ == "__main__":
    main()
