"""The least that a decode must do, and how near ours comes: arithmetic and bytes, at this machine's best rates.

    python -m benchmarks.floors --sizes 512 1024 -o benchmarks/results/floors-cpu.json

The network's own arithmetic is counted as it is written: a 3x3 convolution multiplies 9 times a channel pair and
pixel. Its least traffic: each layer reads its input (before an upsampling: the small one) and writes its output once,
with normalisation and SiLU on the way in. The best rates are those of one large matrix product and one large copy.
Ours can go below the first floor, because Winograd's and the sub-pixel convolutions multiply less; the second floor is
with what it really multiplies.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import report
from benchmarks.systems import Place, by_plan
from benchmarks.workload import SHAPES, Job, machine, timed
from vae_lib.decode import Ladder
from vae_lib.device import DTYPES
from vae_lib.networks import AttnBlock, Network, PackedAttention, Upsample, build
from vae_lib.planning import Planner, Route
from vae_lib.planning.plan import cost_of

ATTENTION = (AttnBlock, PackedAttention)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="pixels along a side")
    parser.add_argument("--shape", choices=[*SHAPES, "bundled"], default="sd")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="JSON file; a table goes beside it")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    multiplications, moved = best_rates(device, dtype)
    records = []
    for size in options.sizes:
        job = Job(options.shape, options.dtype, size, 1)
        vae = job.vae()
        needed, traffic = least(vae, size, dtype)
        vae.to(device, dtype)
        work = Ladder(vae, device=device, dtype=dtype).work("decode", size // 8, size // 8, 1)
        plan = min(Planner().candidates(work, Route.FULL), key=lambda plan: plan.seconds)
        assert plan.tiling is not None
        cost = cost_of(work, plan.tiling)
        latents = job.latents(vae).to(device, dtype)
        decode = functools.partial(by_plan(vae, Place(device, dtype), plan), latents)
        decode()
        measured = min(timed(decode, device).undisturbed(device) for _ in range(options.rounds))
        records.append({
            "size": size, "multiplications": needed, "bytes": traffic,
            "ours_multiplications": cost.multiplications,
            "floor": max(needed / multiplications, traffic / moved),
            "ours_floor": max(cost.multiplications / multiplications, traffic / moved), "measured": measured,
        })  # fmt: skip
    result = {
        "machine": machine(device), "dtype": options.dtype, "multiplications_per_second": multiplications,
        "bytes_per_second": moved, "records": records,
    }  # fmt: skip
    print(table(result))
    if options.output is not None:
        report.save(result, options.output, table(result))


def least(vae: Network, size: int, dtype: torch.dtype) -> tuple[int, int]:
    """(multiplications, bytes) that a decode to ``size`` pixels along a side cannot do without."""
    with torch.device("meta"):
        model = build(vae.config)
    total = [0, 0]

    def count(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            total[0] += made.numel() * module.weight[0].numel()
        if isinstance(module, ATTENTION):
            total[0] += 2 * (made.shape[-2] * made.shape[-1]) ** 2 * made.shape[1]
        if not isinstance(module, ATTENTION):
            total[1] += (given[0].numel() + made.numel()) * dtype.itemsize

    upsampling = {module.conv for module in model.modules() if isinstance(module, Upsample)}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, *ATTENTION)) and module not in upsampling:
            module.register_forward_hook(count)
        elif isinstance(module, Upsample):
            module.register_forward_hook(lambda m, given, made: count(m.conv, (given[0],), made))
    with torch.no_grad():
        model.decode(torch.empty(1, vae.latent_channels, size // 8, size // 8, device="meta"))
    return total[0], total[1]


def best_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(multiplications, bytes) a second of a large matrix product and of a large copy."""
    side = 2048 if device.type == "cpu" else 8192
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    values = torch.ones(64 << 20, device=device, dtype=dtype)
    other = torch.empty_like(values)
    product = min(timed(lambda: a @ b, device).undisturbed(device) for _ in range(5))
    copy = min(timed(lambda: other.copy_(values), device).undisturbed(device) for _ in range(5))
    return side**3 / product, 2 * values.nbytes / copy


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    device = result["machine"]
    lines = [
        f"{device['device']}, {device['threads']} thread(s), {result['dtype']}, PyTorch {device['torch']}, "
        f"{device['date']}: {result['multiplications_per_second'] / 1e9:.0f} G multiplications and "
        f"{result['bytes_per_second'] / 1e9:.1f} GB a second at best.",
        "",
        "| size | multiplications | least traffic | floor | ours multiplies | floor of that | ours | of the floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in result["records"]:
        lines.append(
            f"| {record['size']}x{record['size']} | {record['multiplications'] / 1e9:.0f} G | "
            f"{record['bytes'] / 1e9:.1f} GB | {record['floor']:.2f} s | "
            f"{record['ours_multiplications'] / 1e9:.0f} G | {record['ours_floor']:.2f} s | "
            f"{record['measured']:.2f} s | {record['measured'] / record['floor']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
