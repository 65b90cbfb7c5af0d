"""Tables and plots of what ``compare`` measured.

python -m benchmarks.report benchmarks/results/cpu.json     # writes cpu.md, cpu.png and cpu-growth.png beside it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BASE = "diffusers full"
_EXPLAINED = (
    "Ratios are to diffusers' full decode in the same run: of the process's CPU time where the CPU decodes (other work "
    "on the machine stretches the time on the clock, the CPU time less), of the time on the clock on a GPU."
)


def write(result: dict[str, Any], path: Path) -> None:
    """The JSON file, and beside it the table and the plots."""
    save(result, path, table(result))
    plot(result, path)


def save(result: dict[str, Any], path: Path, table: str | None = None) -> None:
    """A benchmark's JSON file, and its table in a Markdown file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if table is not None:
        path.with_suffix(".md").write_text(table + "\n", encoding="utf-8")


def replace_jobs(kept: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What was measured before on the same machine, its jobs that were measured anew replaced as a whole.

    Raises:
        ValueError: when the machines differ: their figures do not belong into one table.
    """
    ours, theirs = ({k: v for k, v in r["machine"].items() if k != "date"} for r in (new, kept))
    if ours != theirs:
        raise ValueError(f"These figures are of another machine or setting: {theirs}; this is {ours}.")
    anew = {_job(record) for record in new["records"]}
    records = [record for record in kept["records"] if _job(record) not in anew] + new["records"]
    return new | {"records": sorted(records, key=_job)}


def _job(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("shape", "dtype", "batch", "size"))


def clock(result: dict[str, Any]) -> str:
    """Which of the two times is compared."""
    return "cpu_seconds" if result["machine"]["decoder"] == "cpu" else "seconds"


def jobs(result: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(what was decoded, its records) in the order of measurement."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in result["records"]:
        several = f" x{record['batch']}" if record["batch"] > 1 else ""
        size = f"{record['size']}x{record['size']}"
        groups.setdefault(f"{record['shape']} {size} {record['dtype']}{several}", []).append(record)
    yield from groups.items()


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    machine = result["machine"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} thread(s), "
        f"PyTorch {machine['torch']}, {machine['date']}.",
        _EXPLAINED,
        "",
        "| shape, size, dtype | system | time (spread) | CPU time | ratio | peak | ratio | max error | PSNR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for what, records in jobs(result):
        base = next((r for r in records if r["system"] == BASE and "problem" not in r), None)
        for record in records:
            cells = [what, record["system"], *_cells(record, base, clock(result))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(record: dict[str, Any], base: dict[str, Any] | None, time: str) -> list[str]:
    if "problem" in record:
        return [record["problem"], *["-"] * 6]
    ratios = [
        "-" if not (base and base[n] and record[n]) else f"{record[n] / base[n]:.2f}" for n in (time, "peak_bytes")
    ]
    low, high = record["spread"]
    peak, error, psnr = record["peak_bytes"], record["max_error"], record["psnr"]
    return [
        f"{record['seconds']:.2f} s ({low:.2f}-{high:.2f})",
        f"{record['cpu_seconds']:.2f} s",
        ratios[0],
        "-" if peak is None else f"{peak / 2**20:.0f} MiB",
        ratios[1],
        "-" if error is None else f"{error:.1e}",
        "-" if psnr is None else f"{psnr:.0f} dB",
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """``NAME.png``: time against memory, one panel for each job; ``NAME-growth.png``: both against the picture's size.

    Without matplotlib there are no plots.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        print("matplotlib is not installed: no plots", file=sys.stderr)
        return
    groups = [(what, [r for r in records if r.get("peak_bytes")]) for what, records in jobs(result)]
    groups = [(what, records) for what, records in groups if records]
    if not groups:
        return
    systems = list(dict.fromkeys(record["system"] for _, records in groups for record in records))
    figure = Figure(figsize=(4.4 * len(groups) + 2.6, 4.6), layout="constrained")
    for axes, (what, records) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        for record in records:
            x, y = record["peak_bytes"] / 2**20, record[clock(result)]
            shape = "o" if exact(record, result) else "X"
            axes.plot(x, y, shape, color=_own_colour(record["system"], systems), markersize=10, alpha=0.9)
        axes.set(xscale="log", xlabel="peak memory, MiB", ylabel="time, s", title=what)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3, which="both")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=_own_colour(system, systems), label=system) for system in systems
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle("●  the full decode's picture      ✖  another picture (tiles that do not see each other)")
    figure.savefig(path.with_suffix(".png"), dpi=110)
    _plot_growth(result, path.with_name(f"{path.stem}-growth.png"))


def _plot_growth(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    lines: dict[str, list[dict[str, Any]]] = {}
    first = result["records"][0]
    for record in result["records"]:
        if record.get("peak_bytes") and all(record[n] == first[n] for n in ("shape", "dtype", "batch")):
            lines.setdefault(record["system"], []).append(record)
    every = sorted({record["size"] for records in lines.values() for record in records})
    if len(every) < 2:
        return
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, squeeze=False)[0]
    for system, records in lines.items():
        records = sorted(records, key=lambda record: record["size"])
        sizes, style = [record["size"] for record in records], "-" if exact(records[-1], result) else "--"
        colour = _colour(system)
        left.plot(sizes, [r[clock(result)] for r in records], f"o{style}", color=colour, label=system)
        right.plot(sizes, [r["peak_bytes"] / 2**20 for r in records], f"o{style}", color=colour, label=system)
    for axes, label in ((left, "time, s"), (right, "peak memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="pixels along a side", ylabel=label)
        axes.set_xticks(every, [str(size) for size in every])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def exact(record: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether the picture is the full decode's, up to what half precision rounds.

    Where there was no reference, by the system's worst picture of another job.
    """
    others = (r.get("psnr") for r in result["records"] if r["system"] == record["system"])
    psnr = record["psnr"] if record["psnr"] is not None else min((o for o in others if o is not None), default=0.0)
    return bool(psnr > 50)


def _own_colour(system: str, systems: Sequence[str]) -> str:
    """Ours are shades of green, so that they are seen at once; each has its own, for the legend."""
    others = (
        "#1f77b4",
        "#d62728",
        "#ff7f0e",
        "#9467bd",
        "#8c564b",
        "#e377c2",
        "#7f7f7f",
        "#bcbd22",
        "#17becf",
    )
    greens = ("#00441b", "#1b8a3e", "#5dc17a", "#a3dfa0", "#0f766e")
    alike = [name for name in systems if name.startswith("ours") == system.startswith("ours")]
    shades = greens if system.startswith("ours") else others
    return shades[alike.index(system) % len(shades)]


def _colour(system: str) -> str:
    if system.startswith("ours"):
        return "tab:green"
    return "tab:red" if "tiled" in system.lower() else "tab:blue"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(json.loads(Path(name).read_text(encoding="utf-8")), Path(name))
