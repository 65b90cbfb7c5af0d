"""What a decode will need by each route, and up to which size each of them goes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import floor, log2, log10, prod, sqrt
from pathlib import Path

import torch

from vae_lib.checkpoints import describe, read_header
from vae_lib.decode.wording import time_text
from vae_lib.errors import PlanError
from vae_lib.networks import TAESD, Network
from vae_lib.planning import Outlook, Plan, Planner, Prospect, Route, Work
from vae_lib.planning.route import Distrusted
from vae_lib.planning.work import CPU
from vae_lib.ui import markup
from vae_lib.ui.backend import Memory
from vae_lib.units import size_text

LARGEST = 16384  # pixels of a side; beyond, nobody asks
MOST_FRAMES = 1001  # a minute
_SAMPLES = (512, 1024, 2048)  # sides that are predicted in full: larger ones take the planner seconds


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


def network_of_file(path: Path, is_video: bool = False) -> Network | TAESD:
    """The VAE of a file, or that of videos, without its weights; only the header is read.

    Raises:
        CheckpointError: when there is no such VAE in it.
    """
    described = describe(read_header(path))
    return (described.for_video() if is_video else described).network


def curve(work: Work, route: Route) -> Curve:
    """The least that a route needs against the side of a square picture."""
    return _curve(replace(work, height=1, width=1), route)


@functools.lru_cache(maxsize=64)
def _curve(work: Work, route: Route) -> Curve:
    points = []
    for side in _SAMPLES:
        square = replace(work, height=side // work.downscale, width=side // work.downscale)
        points.append((side, _least(square, route)))
    return Curve.through(points)


def _least(work: Work, route: Route) -> int:
    """Peak of the route's smallest plan, on the device that it takes."""
    least = Planner().smallest(work, (route,))
    if least is None:
        raise PlanError(f"{route.caption} cannot be taken for this picture on {work.device}.")
    return least.peak_bytes


def bar(memory: Memory, need: int, where: str) -> str:
    """Memory as one bar: in use, needed, kept back, free; what is missing sticks out in red."""
    if memory.free is None or memory.usable is None:
        return markup.note(
            f"{where}: this device does not report how much of it is free. {size_text(need, up=True)} needed."
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
        f'<span class="vg-{kind}" style="width:{100 * size / whole:.2f}%"></span>' for kind, _, size in parts if size
    )
    keys = "".join(
        f'<span><i class="vg-{kind}"></i>{name} {size_text(size, up=kind == "need")}</span>'
        for kind, name, size in parts
        if size
    )
    title = where if memory.total is None else f"{where}: {size_text(memory.total)}"
    return markup.page(
        f'<div class="vg-dim">{escape(title)}</div><div class="vg-bar" role="img" aria-label="{escape(title)}, '
        f'{size_text(memory.usable)} usable, {size_text(need, up=True)} needed">{spans}</div>'
        f'<div class="vg-key">{keys}</div>'
    )


def largest_side(outlook: Outlook, prospect: Prospect, curve: Curve) -> int | None:
    """The largest side of a square picture, a multiple of 64, that the route can do; 0 if there is none.

    None where nobody knows how much memory is free.
    """
    usable = outlook.free(_place(outlook.work, prospect.route))
    if usable is None:
        return None
    side, plan = curve.largest(usable), prospect.now
    ram = outlook.free(CPU)
    if plan is not None and plan.host_bytes and ram is not None:  # which grows with the area
        side = min(side, int(sqrt(ram / plan.host_bytes * prod(outlook.work.pixels))) // 64 * 64)
    return side


def _place(work: Work, route: Route) -> torch.device:
    """Where a route computes."""
    return work.spare if route.elsewhere else work.device


def reach(outlook: Outlook, prospects: Sequence[Prospect], curves: Mapping[Route, Curve]) -> str:
    """How far one gets, in a sentence: "With 5.2 GB free, you can decode up to 1216 x 1216 in full ...".

    Empty where nobody knows how much memory is free.
    """
    work = outlook.work
    usable = outlook.free(work.device)
    if usable is None:
        return ""
    sides = {p.route: largest_side(outlook, p, curves[p.route]) or 0 for p in prospects if p.route in curves}
    exact = {route: side for route, side in sides.items() if route.exact}
    able: list[str] = []
    best = 0
    for route, side in (exact or sides).items():
        if side > best:  # a route that is slower and reaches no further is not worth a word
            able.append(f"{_side_text(side)} {route.row.how}")
            best = side
    free = f"With {size_text(usable)} free"
    if not able:
        return f"{free}, there is no size that you can {work.operation.value} exactly."
    *most, last = able
    routes = f"{', '.join(most)} and {last}" if most else last
    end = "" if not exact else ", exactly" if len(able) == 1 else ", all of them exactly"
    return f"{free}, you can {work.operation.value} up to {routes}{end}."


def _side_text(side: int) -> str:
    return f"{'over ' if side >= LARGEST else ''}{side}\u00a0×\u00a0{side}"


def with_taesd(outlook: Outlook, planner: Planner) -> list[Prospect]:
    """The prospects, and TAESD's where none is at hand: its numbers help to decide whether to download one."""
    tiny = Outlook(planner, replace(outlook.work, taesd=True), ()).of(Route.TAESD)
    if outlook.work.taesd or tiny.least is None:  # none encodes for Wan, or decodes a video
        return list(outlook.prospects)
    return [*outlook.prospects, tiny]


def routes_table(outlook: Outlook, prospects: Sequence[Prospect], curves: Mapping[Route, Curve]) -> str:
    """Each route: what it would take for this size, the least, how long, and the largest square picture it can do."""
    rows: list[list[markup.Cell]] = []
    for prospect in prospects:
        route, plan = prospect.route, prospect.now
        largest = "…" if outlook.work.frames == 1 else "–"
        if route in curves:
            side = largest_side(outlook, prospect, curves[route])
            largest = "unknown" if side is None else _side_text(side) if side else "none"
        if plan is None:
            how = f'<span class="vg-bad-text">{markup.sentence(_why_not(prospect, outlook))}</span>'
            needs = about = "–"
        else:
            host = f" + {size_text(plan.host_bytes, up=True)} RAM" if plan.host_bytes else ""
            how, needs = escape(_how(plan, prospects)), size_text(plan.peak_bytes, up=True) + host
            about = time_text(plan.seconds)
        least = "–" if prospect.least is None else size_text(prospect.least.peak_bytes, up=True)
        exact = "exact" if route.exact else "approximate"
        name = f"{_swatch(route)}<b>{route.caption}</b> {markup.chip(exact)}"
        numbers = [(text, "vg-num") for text in (needs, least, about, largest)]
        rows.append([(name, ""), (how, "vg-wide"), *numbers])
    head = ("Route", "How it would be done", "Would take now", "Needs at least", "Takes about", "Goes up to")
    return markup.table(head, rows, is_broad=True)


def _how(plan: Plan, prospects: Sequence[Prospect]) -> str:
    """What a plan does; of one that is the full decode by another name, when it would differ."""
    full = next((prospect.now for prospect in prospects if prospect.route is Route.FULL), None)
    if full is None or plan.route is Route.FULL or (plan.device, plan.tiling) != (full.device, full.tiling):
        return markup.sentence(plan.describe())
    return f"As Full, in {plan.band_rows}-row bands; in smaller ones when memory is short"


def _why_not(prospect: Prospect, outlook: Outlook) -> str:
    """The memory may suffice, but not the RAM for what is offloaded."""
    if isinstance(prospect.objection, Distrusted):
        return "gave a wrong picture when this device was checked"
    if prospect.least is None:
        return "not possible on this device"
    usable = outlook.free(_place(outlook.work, prospect.route))
    return "too little RAM" if usable is None or prospect.least.peak_bytes <= usable else "does not fit"


def _swatch(route: Route) -> str:
    colour = route.row.colour
    return f'<i class="vg-swatch" style="background:{colour}"></i>' if colour else ""


def plot(curves: Mapping[Route, Curve], usable: int | None, side: float) -> str:
    """Needed memory against the side of a square picture: one drawing for a desk, one for a phone."""
    drawings = (
        _drawing(curves, usable, side, 1200, "vg-desk"),
        _drawing(curves, usable, side, 480, "vg-phone"),
    )
    return markup.page(f'<p class="vg-dim">Needs at least, in the colours of the table</p>{"".join(drawings)}')


def _drawing(curves: Mapping[Route, Curve], usable: int | None, side: float, width: int, kind: str) -> str:
    """Both axes are logarithmic; a dashed line each for what is usable and for the side that was asked for."""
    left, right, top, bottom, height = 84, 26, 12, 50, 360
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

    def text(x: float, y: float, words: str, anchor: str = "start", strong: bool = False) -> str:
        kind = ' class="vg-strong"' if strong else ""
        return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    def line(x1: float, x2: float, y1: float, y2: float, kind: str = "vg-grid") -> str:
        return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'

    floor_y, end = height - bottom, width - right
    parts = []
    for x in (256, 512, 1024, 2048, 4096, 8192):
        parts += [line(at_x(x), at_x(x), top, floor_y), text(at_x(x), floor_y + 20, str(x), "middle")]
    y = y_low
    while y <= y_high:
        parts += [line(left, end, at_y(y), at_y(y)), text(left - 7, at_y(y) + 4, _round_size(y), "end")]
        y *= 10
    steps = [x_low * 2 ** (i / 8) for i in range(41)]
    for route, needed in curves.items():
        points = " ".join(f"{at_x(x):.1f},{at_y(needed(x)):.1f}" for x in steps)
        parts.append(f'<polyline class="vg-line" stroke="{route.row.colour}" points="{points}"/>')
    if x_low <= side <= x_high:
        parts.append(line(at_x(side), at_x(side), top, floor_y, "vg-limit"))
        parts.append(text(at_x(side) + 5, floor_y - 7, "this size", strong=True))
    if usable is not None:
        parts.append(line(left, end, at_y(usable), at_y(usable), "vg-limit"))
        parts.append(text(left + 6, at_y(usable) - 6, f"usable now: {size_text(usable)}", strong=True))
    parts.append(text((left + end) / 2, height - 6, "side of a square picture, in pixels", "middle"))
    return (
        f'<svg class="vg-plot {kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Least memory needed by each route against the picture\'s size">{"".join(parts)}</svg>'
    )


def _round_size(size: float) -> str:
    return f"{size / 1e9:g} GB" if size >= 1e9 else f"{size / 1e6:g} MB"
