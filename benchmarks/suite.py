"""Every benchmark of this folder, one after the other, with what is published in ``benchmarks/results``.

    python -m benchmarks.suite --device cuda -o benchmarks/results/gpu      # on a GPU of 24 GB or more: about an hour
    python -m benchmarks.suite --device cpu -o benchmarks/results           # two hours on two cores

The most important come first, and each writes its files as it goes. ``--only`` runs those whose name contains a word,
``--list`` prints the commands.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import capped, compare, floors, predict

Main = Callable[[list[str]], None]
MAINS: dict[str, Main] = {
    "compare": compare.main,
    "capped": capped.main,
    "floors": floors.main,
    "predict": predict.main,
}
# name of the result: the benchmark and its arguments
GPU = {
    "fp16": "compare --dtypes fp16 --sizes 512 1024 2048 4096 --rounds 5",
    "capped": "capped",
    "floors": "floors --dtype fp16 --sizes 512 1024 2048 4096",
    "predict": "predict --dtype fp16 --sizes 512 1024 2048",
    "batch": "compare --dtypes fp16 --sizes 512 1024 --batches 4",
    "dtypes": "compare --shapes sd sd3 --dtypes bf16 fp32 --sizes 1024 2048",
}
CPU = {
    "cpu-512": "compare --sizes 512 --rounds 1",
    "cpu-1024": "compare --sizes 1024 --rounds 1 --systems diffusers ours",
    "cpu-2048": "compare --sizes 2048 --rounds 1 --systems 'diffusers full' 'ours tiled'",
    "floors-cpu": "floors --sizes 512 1024",
    "predict-cpu": "predict --sizes 256 512",
    "cpu-bundled": "compare --shapes bundled --sizes 512 1024 2048 --rounds 1",
    "cpu-batch": "compare --shapes bundled --sizes 512 --batches 4 --dtypes fp32 bf16",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", default=[""], help="words of names")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    for name, command in (CPU if options.device == "cpu" else GPU).items():
        if not any(word in name for word in options.only):
            continue
        module, *rest = shlex.split(command)
        rest += ["--device", options.device, "-o", str(options.output / f"{name}.json")]
        print(shlex.join(["python", "-m", f"benchmarks.{module}", *rest]), flush=True)
        if not options.list:
            MAINS[module](rest)


if __name__ == "__main__":
    main()
