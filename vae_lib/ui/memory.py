"""What a decode will need by each route, and up to which size each of them goes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import floor, log2, log10, prod, sqrt
from pathlib import Path

from vae_lib.checkpoints import describe, read_header
from vae_lib.decode import Plan, Route, Work, candidates, choose, smallest
from vae_lib.decode.wording import time_text
from vae_lib.errors import PlanError
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig
from vae_lib.ui import markup
from vae_lib.ui.backend import Memory
from vae_lib.units import size_text

LARGEST = 16384  # pixels of a side; beyond, nobody asks
_SAMPLES = (512, 1024, 2048)  # sides that are predicted in full: larger ones take the planner seconds

COLOURS = {Route.FULL: "#3b82f6", Route.TILED: "#10b981", Route.OFFLOAD: "#f59e0b", Route.TAESD: "#a855f7"}


@dataclass(frozen=True)
class Curve:
    """Least memory in bytes for a square picture of a side in pixels: a polynomial, as all maps are areas or rows."""

    constant: float
    linear: float
    square: float

    @classmethod
    def through(cls, points: Sequence[tuple[int, int]]) -> Curve:
        """The parabola through three points (side, bytes)."""
        (x0, y0), (x1, y1), (x2, y2) = points
        first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
        square = (second - first) / (x2 - x0)
        linear = first - square * (x0 + x1)
        return cls(y0 - linear * x0 - square * x0 * x0, linear, square)

    def __call__(self, side: float) -> float:
        return self.constant + self.linear * side + self.square * side * side

    def largest(self, limit: float) -> int:
        """The largest side, a multiple of 64, that needs no more than ``limit`` bytes; 0 if there is none."""
        low, high = 0, LARGEST // 64
        while low < high:
            middle = (low + high + 1) // 2
            if self(64 * middle) <= limit:
                low = middle
            else:
                high = middle - 1
        return 64 * low


def vae_of_file(path: Path) -> tuple[AutoencoderKLConfig | None, int]:
    """The configuration of a file's VAE, None for a TAESD, and its latent channels; only the header is read.

    Raises:
        CheckpointError: when there is no VAE in it.
    """
    network = describe(read_header(path)).network
    return network.config if isinstance(network, AutoencoderKL) else None, network.latent_channels


def routes_of(work: Work) -> list[Route]:
    """The routes that the work can take on its own device, and the CPU's beside a GPU."""
    routes = [] if work.config is None else [Route.FULL, Route.TILED, Route.OFFLOAD]
    if work.config is not None and work.device.type != "cpu":
        routes.append(Route.CPU)
    return [*routes, Route.TAESD]


def curve(work: Work, route: Route) -> Curve:
    """The least that a route needs against the side of a square picture."""
    return _curve(replace(work, height=1, width=1), route)


@functools.lru_cache(maxsize=64)
def _curve(work: Work, route: Route) -> Curve:
    scale = 8 if work.config is None else work.config.downscale
    points = []
    for side in _SAMPLES:
        square = replace(work, height=side // scale, width=side // scale)
        points.append((side, _least(square, route)))
    return Curve.through(points)


def _least(work: Work, route: Route) -> int:
    """Peak of the route's smallest plan, on the device that it takes."""
    least = smallest(work, (route,))
    if least is not None:
        return least.peak_bytes
    return min(plan.peak_bytes for plan in candidates(work, route))  # on the CPU, beside another device


def plan_for(work: Work, route: Route, memory: Mapping[str, Memory]) -> Plan | None:
    """How a route would do the work in the memory there is (by device type); None when it does not fit."""
    usable = memory[work.device.type].usable
    cpu = memory["cpu"].usable if "cpu" in memory else None
    try:
        return choose(work, usable, order=(route,), cpu_free_bytes=cpu)
    except PlanError:
        return None


def bar(memory: Memory, need: int, where: str) -> str:
    """Memory as one bar: in use, needed, kept back, free; what is missing sticks out in red."""
    if memory.free is None or memory.usable is None:
        return markup.note(
            f"{where}: this device does not tell how much of it is free. {size_text(need)} needed."
        )
    used = 0 if memory.total is None else max(0, memory.total - memory.free)
    over = max(0, need - memory.usable)
    parts = (
        ("used", "in use", used),
        ("need", "needed", need - over),
        ("over", "missing", over),
        ("reserve", "kept back", min(memory.reserve, memory.free)),
        ("free", "free", max(0, memory.usable - need)),
    )
    whole = max(1, sum(size for _, _, size in parts))
    spans = "".join(
        f'<span class="vg-{kind}" style="width:{100 * size / whole:.2f}%"></span>'
        for kind, _, size in parts
        if size
    )
    keys = "".join(
        f'<span><i class="vg-{kind}"></i>{name} {size_text(size)}</span>'
        for kind, name, size in parts
        if size
    )
    title = where if memory.total is None else f"{where}: {size_text(memory.total)}"
    return markup.page(
        f'<div class="vg-dim">{escape(title)}</div><div class="vg-bar" role="img" aria-label="{escape(title)}, '
        f'{size_text(memory.usable)} usable, {size_text(need)} needed">{spans}</div><div class="vg-key">{keys}</div>'
    )


def routes_table(work: Work, memory: Mapping[str, Memory], curves: Mapping[Route, Curve]) -> str:
    """Each route: what it would take for this size, how long, and the largest square picture it can do."""
    rows: list[list[markup.Cell]] = []
    for route in routes_of(work):
        plan = plan_for(work, route, memory)
        largest = "…"
        if route in curves:
            device = "cpu" if route is Route.CPU else work.device.type
            usable = memory[device].usable
            side = 0 if usable is None else curves[route].largest(usable)
            ram = memory["cpu"].usable if "cpu" in memory else None
            if plan is not None and plan.host_bytes and ram is not None:  # which grows with the area
                side = min(side, int(sqrt(ram / plan.host_bytes * prod(work.pixels))) // 64 * 64)
            largest = f"{'over ' if side >= LARGEST else ''}{side} × {side}" if side else "none"
            largest = "unknown" if usable is None else largest
        if plan is None:
            mine = [('<span class="vg-bad-text">does not fit</span>', "vg-wide"), ("", ""), ("", "")]
        else:
            host = f" + {size_text(plan.host_bytes)} RAM" if plan.host_bytes else ""
            mine = [
                (escape(plan.describe()), "vg-wide"),
                (size_text(plan.peak_bytes) + host, "vg-num"),
                (time_text(plan.seconds), "vg-num"),
            ]
        exact = "exact" if route.exact else "approximate"
        name = f"<b>{route.caption}</b> {markup.chip(exact)}"
        rows.append([(name, ""), *mine, (largest, "vg-num")])
    return markup.table(("Route", "How", "Needs", "About", "Up to"), rows)


def plot(curves: Mapping[Route, Curve], usable: int | None, side: float) -> str:
    """Needed memory against the side of a square picture, both logarithmic, with the line of what is usable."""
    left, right, top, bottom, width, height = 92, 30, 12, 56, 720, 340
    x_low, x_high = 256, 8192
    values = [
        *([] if usable is None else [usable]),
        *(c(x) for c in curves.values() for x in (x_low, x_high)),
    ]
    y_low = 10 ** floor(log10(max(1e6, min(values))))
    y_high = max(values) * 1.4

    def at_x(x: float) -> float:
        return left + (width - left - right) * log2(x / x_low) / log2(x_high / x_low)

    def at_y(y: float) -> float:
        share = log10(max(y, y_low) / y_low) / log10(y_high / y_low)
        return top + (height - top - bottom) * (1 - share)

    parts = []
    for x in (256, 512, 1024, 2048, 4096, 8192):
        parts.append(
            f'<line class="vg-grid" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{top}" y2="{height - bottom}"/>'
            f'<text x="{at_x(x):.1f}" y="{height - bottom + 22}" text-anchor="middle">{x}</text>'
        )
    y = y_low
    while y <= y_high:
        parts.append(
            f'<line class="vg-grid" x1="{left}" x2="{width - right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>'
            f'<text x="{left - 7}" y="{at_y(y) + 4:.1f}" text-anchor="end">{_round_size(y)}</text>'
        )
        y *= 10
    steps = [x_low * 2 ** (i / 8) for i in range(41)]
    for route, needed in curves.items():
        points = " ".join(f"{at_x(x):.1f},{at_y(needed(x)):.1f}" for x in steps)
        parts.append(
            f'<polyline class="vg-line" stroke="{COLOURS[route]}" points="{points}"/>'
            if route in COLOURS
            else ""
        )
    if usable is not None:
        line = at_y(usable)
        parts.append(
            f'<line class="vg-limit" x1="{left}" x2="{width - right}" y1="{line:.1f}" y2="{line:.1f}"/>'
            f'<text class="vg-strong" x="{left + 6}" y="{line - 6:.1f}">usable now: {size_text(usable)}</text>'
        )
    if x_low <= side <= x_high:
        parts.append(
            f'<line class="vg-limit" x1="{at_x(side):.1f}" x2="{at_x(side):.1f}" y1="{top}" y2="{height - bottom}"/>'
        )
    middle = left + (width - left - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 7}" text-anchor="middle">side of a square picture, pixels</text>'
    )
    keys = "".join(
        f'<span><i style="background:{COLOURS[route]}"></i>{route.caption}</span>'
        for route in curves
        if route in COLOURS
    )
    return markup.page(
        f'<svg class="vg-plot" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Least memory needed by each route against the picture\'s size">{"".join(parts)}</svg>'
        f'<div class="vg-key">{keys}</div>'
    )


def _round_size(size: float) -> str:
    return f"{size / 1e9:g} GB" if size >= 1e9 else f"{size / 1e6:g} MB"
