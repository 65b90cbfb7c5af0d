"""Every benchmark of this folder, one after the other, with what is published in ``benchmarks/results``.

    python -m benchmarks.suite --device cuda     # on a GPU of 24 GB or more: about an hour
    python -m benchmarks.suite --device cpu     # six hours; 24 GB of main memory, and nothing else on the machine
    python -m benchmarks.suite --device cuda --minutes 4     # what matters most of it (see benchmarks/short.py)

The most important come first, and each writes its files as it goes. ``--only`` runs those whose name contains a word,
``--list`` prints the commands. With ``--minutes`` the other options are those of ``benchmarks.short``.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import capped, compare, floors, predict, short

Main = Callable[[list[str]], None]
MAINS: dict[str, Main] = {
    "compare": compare.main,
    "capped": capped.main,
    "floors": floors.main,
    "predict": predict.main,
    "short": short.main,
}
# (name of the result, the benchmark and its arguments); comparisons of one name go into one table
Run = tuple[str, str]
GPU: list[Run] = [
    ("gpu-fp16", "compare --dtypes fp16 --sizes 512 1024 2048 4096 --rounds 5"),
    ("gpu-capped", "capped"),
    ("gpu-floors", "floors --dtype fp16 --sizes 512 1024 2048 4096"),
    ("gpu-predict", "predict --dtype fp16 --sizes 512 1024 2048"),
    ("gpu-batch", "compare --dtypes fp16 --sizes 512 1024 --batches 4"),
    ("gpu-dtypes", "compare --shapes sd sd3 --dtypes bf16 fp32 --sizes 1024 2048"),
]
_LARGE = "--systems 'diffusers full' 'diffusers tiled' 'Tiled VAE' 'ours tiled' 'ours offload'"
CPU: list[Run] = [
    ("cpu", "compare --threads 1 --sizes 512 --rounds 1"),
    ("cpu", "compare --threads 1 --sizes 1024 --rounds 1 --systems diffusers ldm 'Tiled VAE' ours"),
    ("cpu", f"compare --threads 1 --sizes 2048 --rounds 1 {_LARGE}"),
    (
        "cpu-2-threads",
        "compare --threads 2 --sizes 512 --rounds 2 --systems 'diffusers full' 'ldm full' 'ours full' "
        "'ours tiled, smallest' 'ours offload'",
    ),
    ("cpu-sd3", "compare --threads 1 --shapes sd3 --sizes 512 --rounds 1"),
    ("cpu-bundled", "compare --threads 1 --shapes bundled --sizes 512 1024 2048 --rounds 1"),
    ("cpu-bundled", f"compare --threads 1 --shapes bundled --sizes 4096 --rounds 1 {_LARGE}"),
    (
        "cpu-batch",
        "compare --threads 1 --shapes bundled --sizes 256 --batches 1 4 --dtypes fp32 bf16 --rounds 1",
    ),
    (
        "cpu-capped",
        "capped --shape bundled --dtype fp32 --caps 0.5 1 2 --ballast 0.25 --sizes 512 1024 --rounds 1",
    ),
    ("cpu-floors", "floors --sizes 256 512"),
    ("cpu-predict", "predict --sizes 256 512"),
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", default=[""], help="words of names")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, help="run the short suite instead, in so many minutes")
    options, rest_of_short = parser.parse_known_args(arguments)
    if options.minutes is not None:
        runs = [
            (
                short.result_name(options.device),
                shlex.join(["short", f"--minutes={options.minutes}", *rest_of_short]),
            )
        ]
    elif rest_of_short:
        parser.error(f"unrecognized arguments: {shlex.join(rest_of_short)}")
    else:
        runs = CPU if options.device == "cpu" else GPU
    for name, command in runs:
        if not any(word in name for word in options.only):
            continue
        module, *rest = shlex.split(command)
        rest += ["--device", options.device, "-o", str(options.output / f"{name}.json")]
        print(shlex.join(["python", "-m", f"benchmarks.{module}", *rest]), flush=True)
        if not options.list:
            MAINS[module](rest)


if __name__ == "__main__":
    main()
