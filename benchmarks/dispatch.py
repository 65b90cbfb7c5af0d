"""How many operations PyTorch is asked for in one decode, by the peers and by each of our routes; without a GPU.

    python -m benchmarks.dispatch --sizes 512 1024 2048 4096 --json benchmarks/results/dispatch.json

On a fast GPU a decode can take as long as it takes to ask for its operations, so that their number matters beside the
arithmetic. Here they run on PyTorch's meta device, which knows shapes and bytes but has no numbers, and has no kernels
of CUDA's: the statistics and the normalising that our engine uses, and attention (everybody's: by itself the meta
device would make the whole matrix of scores), stand in as one operation each, as on CUDA. None of these figures but
the seconds depends on the machine.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import peers, report
from benchmarks.peers import Decode, Missing
from benchmarks.workload import SHAPES, Job, machine, timed
from vae_lib.device import DTYPES, PeakMemory, kernels
from vae_lib.device.kind import Kernels
from vae_lib.device.transfers import Transfers
from vae_lib.engine import Compute, Operation, Tiling, decode
from vae_lib.networks import Network, build
from vae_lib.planning import Plan, Planner, Route, Work
from vae_lib.planning.plan import WHOLE, cost_of

META, CUDA = torch.device("meta"), torch.device("cuda")
BANDS = 64 << 20
MOST = 100_000  # operations that are run here, in about a minute; of more there is the planner's count
RUN, PLANNED = "run", "planner"

# One operation each. The memory that CUDA's kernels take beside their results is missing for all alike.
_library = torch.library.Library("vae_guard_benchmark", "DEF")


def _stats(x: Tensor) -> tuple[Tensor, Tensor]:
    assert x.is_contiguous(memory_format=torch.channels_last), "CUDA's kernel would go another, slow way"
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))  # type: ignore[return-value]


def _gather(means: Tensor) -> tuple[Tensor, Tensor]:
    return means.new_empty(means.shape[1]), means.new_empty(means.shape[1])


def _convolve(x: Tensor, weight: Tensor, stride: int, rows: int, columns: int) -> Tensor:
    sides = (
        (side + 2 * padding - kernel) // stride + 1
        for side, padding, kernel in zip(x.shape[2:], (rows, columns), weight.shape[2:], strict=True)
    )
    return x.new_empty(len(x), len(weight), *sides).contiguous(memory_format=torch.channels_last)


for _schema, _kernel in (
    ("convolve(Tensor x, Tensor weight, int stride, int rows, int columns) -> Tensor", _convolve),
    ("stats(Tensor x) -> (Tensor, Tensor)", _stats),
    ("gather(Tensor means) -> (Tensor, Tensor)", _gather),
    ("normalise(Tensor(a!) out, Tensor x) -> ()", lambda out, x: None),
    ("attend(Tensor q) -> Tensor", torch.empty_like),
    ("transfer(Tensor(a!) target, Tensor source) -> ()", lambda target, source: None),
):
    _library.define(_schema)
    _library.impl(_schema.split("(")[0], _kernel, "CompositeExplicitAutograd")
_ops = torch.ops.vae_guard_benchmark


_conv2d = F.conv2d


def _conv2d_as_cudnn(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *rest: Any
) -> Tensor:
    """Weights laid out by pixels, as only our engine has them, make such a picture; the meta device makes another."""
    if weight.is_contiguous():
        return _conv2d(x, weight, bias, stride, padding, *rest)
    return _ops.convolve(x, weight, stride, *padding)


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Within it the meta device has the kernels that CUDA has, and what is copied from and to it is nothing."""
    real = kernels.of
    cuda = Kernels(norms=True, mixes=True, attention=True, bias_apart=True)
    with ExitStack() as stack:
        for owner, name, stands_in in (
            (kernels, "of", lambda device, dtype: cuda if device == META else real(device, dtype)),
            (kernels, "attention_is_fused", lambda device, dtype, channels: True),
            (torch, "batch_norm_stats", lambda x, eps: _ops.stats(x)),
            (torch, "batch_norm_gather_stats_with_counts", lambda x, means, *rest: _ops.gather(means)),
            (torch, "batch_norm_elemt", lambda x, *factors, out: _ops.normalise(out, x)),
            (F, "conv2d", _conv2d_as_cudnn),
            (F, "scaled_dot_product_attention", lambda q, k, v, **options: _ops.attend(q)),
            (Transfers, "_copy", lambda self, lane, target, source: _ops.transfer(target, source)),
        ):
            stack.enter_context(mock.patch.object(owner, name, stands_in))
        yield


class Dispatches(TorchDispatchMode):
    """Counts the operations that PyTorch is asked for, and those of them that work on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.kernels += _is_kernel(func)
        return func(*args, **(kwargs or {}))


@functools.cache
def _is_kernel(operation: Any) -> bool:
    """Whether it does more than to look at memory in another way, or to get some."""
    name = operation.overloadpacket.__name__
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns)
    return not (views or name == "_unsafe_view" or "empty" in name)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="pixels a side")
    parser.add_argument("--shape", choices=[*SHAPES, "bundled"], default="sd")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--json", type=Path, help="file for the figures; the table goes beside it")
    options = parser.parse_args(arguments)
    dtype = DTYPES[options.dtype]
    vae = _network(options.shape, dtype)
    records: list[dict[str, Any]] = []
    result = {
        "machine": machine(META),
        "shape": options.shape,
        "dtype": options.dtype,
        "records": records,
    }
    for size in options.sizes:
        for record in _counted(vae, size, dtype):
            print(record, file=sys.stderr, flush=True)
            records.append(record)
            if options.json is not None:
                report.save(result, options.json, table(result))
    print(table(result))


def _network(shape: str, dtype: torch.dtype) -> Network:
    """Without an encoder, and without weights."""
    with torch.device(META):
        vae = build(SHAPES[shape] if shape in SHAPES else Job(shape, "fp32", 8, 1).vae().config)
    return vae.to(dtype).eval().requires_grad_(False)


def _counted(vae: Network, size: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """One record for each system that is there."""
    side = size // vae.downscale
    latents = torch.empty(1, vae.latent_channels, side, side, dtype=dtype, device=META)
    others: dict[str, Callable[[], Decode]] = {
        "diffusers full": lambda: peers.diffusers(vae, META, dtype, "full"),
        "ldm full": lambda: peers.ldm(vae, META, dtype),
        "plain network": lambda: vae.decode,
    }
    for name, make in others.items():
        try:
            with torch.device(META):
                other = make()
        except Missing as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr, flush=True)
            continue
        yield {"size": size, "system": name, **_run(lambda other=other: other(latents))}  # type: ignore[misc]
    work = Work(vae.config, Operation.DECODE, side, side, 1, CUDA, dtype)
    for name, tiling in _ways(work).items():
        cost = cost_of(work, tiling)
        record = {"size": size, "system": name, "tiling": vars(tiling)}
        if cost.dispatches > MOST:
            counts = {"dispatches": cost.dispatches, "kernels": None, "peak_bytes": cost.peak_bytes}
            yield {**record, **counts, "seconds": None, "counted": PLANNED}
            continue
        yield {
            **record,
            **_run(lambda tiling=tiling: decode(vae, latents, tiling, Compute(META, dtype))),  # type: ignore[misc]
            "planned_dispatches": cost.dispatches,
        }


def _ways(work: Work) -> dict[str, Tiling]:
    """What our planner would do on an ordinary GPU."""

    def best(route: Route, wanted: Callable[[Plan], float]) -> Tiling:
        tiling = min(Planner().candidates(work, route), key=wanted).tiling
        assert tiling is not None
        return tiling

    return {
        "ours full, whole": Tiling(WHOLE),
        "ours full, 64 MiB bands": Tiling(BANDS),
        "ours tiled, fastest": best(Route.TILED, lambda plan: plan.seconds),
        "ours tiled, smallest": best(Route.TILED, lambda plan: plan.peak_bytes),
        "ours offload, fastest": best(Route.OFFLOAD, lambda plan: plan.seconds),
    }


@torch.no_grad()
def _run(work: Callable[[], object]) -> dict[str, Any]:
    with as_on_cuda():
        with PeakMemory(META) as peak, Dispatches() as counted:
            work()
        seconds = [timed(work, META).cpu_seconds for _ in range(3)]
    return {
        "dispatches": counted.count,
        "kernels": counted.kernels,
        "peak_bytes": peak.bytes,
        "seconds": statistics.median(seconds),
        "counted": RUN,
    }


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    device = result["machine"]
    planned = [
        "",
        'What says "planner" was not run, for it would take minutes: operations and peak are what our planner counts. '
        "Its operations are exact, but for a few percent in main memory where activations are offloaded; its peak has "
        "3 MiB more, which CUDA's allocator may leave unused.",
    ]
    lines = [
        f"One decode by a decoder of shape {result['shape']} in {result['dtype']}, on PyTorch's meta device "
        f"(PyTorch {device['torch']}, {device['date']}). Operations: what PyTorch is asked for, views and allocations "
        "included. Kernels: those of them that are neither, each at least one kernel on the device. Attention counts "
        "as one fused kernel for everybody (by itself the meta device would make a matrix of scores, in several "
        "operations), and so do our statistics and our normalising, as on CUDA. Peak: most bytes of tensors alive at "
        "once beyond weights and latents, without what kernels take beside their results.",
        "",
        f"Seconds: CPU time of Python and dispatch, median of 3, on {device['device']} with other work on the machine: "
        "an indication. A large part of it is the meta device's own Python, for convolutions and group norms most, "
        "which is not there on a GPU.",
        *(planned if any(record["counted"] == PLANNED for record in result["records"]) else []),
        "",
        "| size | system | operations | kernels | peak | seconds | counted by |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in result["records"]:
        made, seconds = record["kernels"], record["seconds"]
        cells = [
            f"{record['size']}x{record['size']}", record["system"], f"{record['dispatches']}",
            "-" if made is None else f"{made}", f"{record['peak_bytes'] / 2**20:.0f} MiB",
            "-" if seconds is None else f"{seconds:.3f}", record["counted"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
