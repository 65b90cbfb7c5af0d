"""The README's picture of Qwen-Image's VAE: time and memory against size, by diffusers, Forge Neo and ours.

    python -m benchmarks.qwen_image        # writes docs/qwen-image-light.png and docs/qwen-image-dark.png

Its figures are those of ``benchmarks/results``: CPU time of ``python -m benchmarks.compare --shapes wan`` (fp32) and
memory counted by ``python -m benchmarks.dispatch --shape wan --dtype bf16``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.picture import DOCS, THEMES

RESULTS = Path(__file__).parent / "results"
LINES = {  # system in dispatch-wan.json, in cpu-wan.json: what it is called, and its colour
    ("diffusers full", "diffusers full"): ("diffusers", "#d62728"),
    ("plain network", "last taps only"): ("Forge Neo, ComfyUI (last taps only)", "#ff7f0e"),
    ("ours full, whole", "ours full"): ("VAE Guard, full", "#5dc17a"),
    ("ours tiled, smallest", "ours tiled, smallest"): ("VAE Guard, tiled", "#1b8a3e"),
}


def series(result: dict[str, Any], system: str, field: str, scale: float) -> tuple[list[int], list[float]]:
    """Pixels along a side, and the figure."""
    records = [r for r in result["records"] if r["system"] == system and r.get(field) is not None]
    return [r["size"] for r in records], [r[field] / scale for r in records]


def draw(memory: dict[str, Any], time: dict[str, Any], theme: str, path: Path) -> None:
    from matplotlib.figure import Figure

    background, ink, dim = THEMES[theme]
    figure = Figure(figsize=(12.6, 4.4), facecolor=background, layout="constrained")
    left, right = figure.subplots(1, 2, squeeze=False)[0]
    for place, ((counted, timed), (name, colour)) in enumerate(LINES.items()):
        sizes, bytes_at = series(memory, counted, "peak_bytes", 2**30)
        left.plot(sizes, bytes_at, "o-", color=colour, label=name, linewidth=2.5)
        timed_sizes, seconds = series(time, timed, "cpu_seconds", 1.0)
        _, theirs = series(time, "diffusers full", "cpu_seconds", 1.0)
        ratios = [ours / base for ours, base in zip(seconds, theirs, strict=True)]
        bars = right.bar([x + 0.2 * (place - 1.5) for x in range(len(ratios))], ratios, 0.18, color=colour)
        right.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], color=ink, fontsize=11, padding=2)
    left.set(xscale="log", yscale="log")
    left.set_xticks(sizes, [f"{size}x{size}" for size in sizes])
    left.minorticks_off()
    left.yaxis.set_major_formatter("{x:g}")
    left.grid(color=dim, alpha=0.25)
    right.set_xticks(range(len(timed_sizes)), [f"{size}x{size}" for size in timed_sizes])
    right.set_ylim(0, 1.12)
    for axes, title in ((left, "Memory, GiB (bf16)"), (right, "CPU time, diffusers = 1 (fp32, one thread)")):
        axes.set_title(title, color=ink, fontsize=14, fontweight="bold", pad=10)
        axes.set_facecolor(background)
        axes.tick_params(colors=ink, labelsize=11)
        for spine in axes.spines.values():
            spine.set_color(dim)
    figure.legend(loc="outside lower center", ncols=len(LINES), fontsize=12, frameon=False, labelcolor=ink)
    figure.savefig(path, dpi=100, facecolor=background)


def main() -> None:
    memory, time = (
        json.loads((RESULTS / name).read_text(encoding="utf-8")) for name in ("dispatch-wan.json", "cpu-wan.json")
    )
    for theme in THEMES:
        draw(memory, time, theme, DOCS / f"qwen-image-{theme}.png")


if __name__ == "__main__":
    main()
