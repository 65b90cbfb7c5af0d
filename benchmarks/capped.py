"""Which sizes each system survives on a card of 4, 6, 8 or 12 GB, with a UNet in it, and how fast.

    python -m benchmarks.capped -o benchmarks/results/capped.json             # on a GPU with more memory than that
    python -m benchmarks.capped --device cpu --shape bundled --caps 0.5 --ballast 0.2 --sizes 256 512 --dtype fp32

On CUDA ``torch.cuda.set_per_process_memory_fraction`` is the card's limit, and a tensor as large as a UNet in half
precision lies beside the VAE. On the CPU the bytes of live tensors are counted and limited: a rehearsal, which the
counting slows so much that its table has no seconds. "ours" plans by itself with what is left, as the extension does;
"-" is out of memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.systems import AUTOMATIC, SYSTEMS
from benchmarks.worker import Worker
from benchmarks.workload import SHAPES, Job, machine
from vae_lib.device import DTYPES

GB = 10**9
PEERS = ("diffusers full", "diffusers tiled", "ldm full", "three tiled passes", "ComfyUI tiled", "Tiled VAE")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--caps", type=float, nargs="+", default=[4, 6, 8, 12], help="GB")
    parser.add_argument(
        "--ballast", type=float, nargs="+", default=[1.7, 4.5, 5.1, 5.1],
        help="GB of it that are taken: one for all caps, or one each (a UNet of SD1 has 1.7, one of SDXL 5.1)",
    )  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 1536, 2048, 3072, 4096, 8192])
    parser.add_argument("--shape", choices=[*SHAPES, "bundled"], default="sd")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*PEERS, AUTOMATIC])
    parser.add_argument("-o", "--output", type=Path, help="JSON file; a table goes beside it")
    options = parser.parse_args(arguments)
    ballast = options.ballast * len(options.caps) if len(options.ballast) == 1 else options.ballast
    if len(ballast) != len(options.caps):
        parser.error("--ballast takes one number, or as many as --caps")
    records: list[dict[str, Any]] = []
    result = {"machine": machine(torch.device(options.device)), "records": records}
    for cap, taken in zip(options.caps, ballast, strict=True):
        for system in options.systems:
            records += _survived(system, cap, taken, options)
            if options.output is not None:
                report.save(result, options.output, table(result))
    print(table(result))


def _survived(system: str, cap: float, ballast: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One record a size, in a process for all of them; a system that is not there has none."""
    records = []
    with Worker(system, options.device, torch.get_num_threads()) as worker:
        worker.ask("cap", round(cap * GB), round(ballast * GB))
        for size in options.sizes:
            record = {"system": system, "cap": cap, "ballast": ballast, "size": size, "dtype": options.dtype}
            answer = worker.ask("load", Job(options.shape, options.dtype, size, 1))
            if answer.get("missing"):
                print(f"{system} is left out: {answer['problem']}", flush=True)
                break
            times = [answer]
            while "problem" not in times[-1] and len(times) <= options.rounds:
                times.append(worker.ask("time"))
            if "problem" in times[-1]:
                record["problem"] = times[-1]["problem"]
            else:
                record["seconds"] = min(time["seconds"] for time in times[1:])
            print(f"{cap:g} GB, {system}, {size}: {record.get('problem') or record['seconds']}", flush=True)
            records.append(record)
    return records


def table(result: dict[str, Any]) -> str:
    """As Markdown: a line for each cap and system, a column for each size."""
    device, records = result["machine"], result["records"]
    counted = device["decoder"] == "cpu"
    sizes = sorted({record["size"] for record in records})
    lines = [
        f"{device['device']}, PyTorch {device['torch']}, {device['date']}. "
        f"{'yes: survived' if counted else 'Seconds for one picture'}; - is out of memory.",
        "",
        f"| memory (taken) | system | {' | '.join(f'{size}²' for size in sizes)} |",
        "|---|---|" + "---|" * len(sizes),
    ]
    rows: dict[tuple[float, float, str], dict[int, str]] = {}
    for record in records:
        said = {"out of memory": "-"}.get(record.get("problem", ""), record.get("problem"))
        row = rows.setdefault((record["cap"], record["ballast"], record["system"]), {})
        row[record["size"]] = said or ("yes" if counted else f"{record['seconds']:.2f}")
    for (cap, ballast, system), row in rows.items():
        cells = " | ".join(row.get(size, "") for size in sizes)
        lines.append(f"| {cap:g} GB ({ballast:g}) | {system} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
