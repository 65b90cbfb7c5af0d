"""Time, peak memory and exactness of VAE decoding, ours beside the peers', on the same weights and latents.

    python -m benchmarks.compare --sizes 512 1024 --rounds 3 -o benchmarks/results/cpu.json

Every system decodes the same random latents with the same random weights of the shape of Stable Diffusion's VAE
(``--shapes bundled``: the bundled VAE's), in a process of its own. They take turns, round after round, so that a
machine whose speed drifts is unfair to none. Time is the median over the rounds; peak memory comes from a run of its
own and is the live tensor bytes beyond weights and latents on the CPU, the allocator's peak on a GPU. What our offload
keeps in main memory (on the CPU: in a scratch file) is not on the device and not counted. "max error" and PSNR are to
the float32 picture of the plain network, whose values span about 2.

Peers: diffusers full, sliced and tiled with default settings; for Wan's network (``--shapes wan``) the plain one with
the last temporal taps alone, which is what Forge Neo and ComfyUI compute; the decoder of ldm, which AUTOMATIC1111 runs;
a stand-in, written for this comparison, for the tiled decode of ComfyUI and Forge, and the real one where COMFYUI_DIR
names a checkout; the extension Tiled VAE where TILED_VAE_DIR does (see benchmarks/peers.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.systems import AUTOMATIC, SYSTEMS
from benchmarks.worker import REFERENCE, Worker
from benchmarks.workload import SHAPES, Job, machine
from vae_lib.device import DTYPES


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    names = _chosen(options.systems or [""])
    jobs = [
        Job(shape, dtype, size, batch)
        for shape in options.shapes
        for dtype in options.dtypes
        for size in options.sizes
        for batch in options.batches
    ]
    here = machine(torch.device(options.device))
    result: dict[str, Any] = {"machine": here, "records": []}
    if options.output is not None and options.output.exists():
        result = report.replace_jobs(json.loads(options.output.read_text(encoding="utf-8")), result)
    for job in jobs:
        result = report.replace_jobs(result, {"machine": here, "records": _compare(job, names, options)})
        if options.output is not None:  # after every job: a long run that is cut off has its figures
            report.write(result, options.output)
    print(report.table(result))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], help="pixels along a side")
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES, "bundled"], default=["sd"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", help="names, or words of names")
    parser.add_argument(
        "-o", "--output", type=Path,
        help="JSON file; a table and plots go beside it. Other jobs' figures that it holds stay, if of this machine",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _chosen(words: list[str]) -> list[str]:
    """The systems of these names, and those whose name contains a word that is none."""
    parts = [word for word in words if word not in SYSTEMS]
    return [name for name in SYSTEMS if name in words or (name != AUTOMATIC and any(part in name for part in parts))]


def _compare(job: Job, names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record for each system that is there."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        reference = _reference(job, Path(folder) / "reference.pt", options)
        workers: dict[str, Worker] = {}
        for name in names:
            worker = Worker(name, options.device, options.threads)
            if problem := worker.ask("load", job).get("problem"):
                print(f"{job}, {name} is left out: {problem}", file=sys.stderr, flush=True)
                worker.__exit__()
                continue
            workers[name] = stack.enter_context(worker)
        times: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        for _ in range(options.rounds):
            for name, worker in workers.items():
                if not any("problem" in answer for answer in times[name]):
                    times[name].append(worker.ask("time"))
                    print(f"{job}, {name}: {_said(times[name][-1])}", file=sys.stderr, flush=True)
        return [_record(job, name, times[name], workers[name], reference) for name in workers]


def _reference(job: Job, path: Path, options: argparse.Namespace) -> Path | None:
    """The plain network's picture in float32; None where it does not fit."""
    with Worker(REFERENCE, options.device, options.threads) as worker:
        answer = worker.ask("load", job, "fp32") or worker.ask("save", path)
    return None if answer else path


def _record(job: Job, name: str, times: list[dict[str, Any]], worker: Worker, reference: Path | None) -> dict[str, Any]:
    record: dict[str, Any] = {**vars(job), "system": name}
    problem = next((answer["problem"] for answer in times if "problem" in answer), None)
    if problem is not None:
        return record | {"problem": problem}
    seconds = [answer["seconds"] for answer in times]
    measured = worker.ask("measure", reference)
    if "problem" in measured:  # for want of memory, on a busy machine: the times hold
        print(f"{job}, {name}, peak memory: {measured['problem']}", file=sys.stderr, flush=True)
        measured = {"peak_bytes": None, "max_error": None, "psnr": None}
    return record | {
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "cpu_seconds": statistics.median(answer["cpu_seconds"] for answer in times),
        **measured,
    }


def _said(answer: dict[str, Any]) -> str:
    return answer.get("problem") or f"{answer['seconds']:.2f} s"


if __name__ == "__main__":
    main()
