"""What the memory section says of a GPU that is not there."""

from __future__ import annotations

import re

import pytest
import torch

from tests.planning.plans import planner
from vae_lib.networks import AutoencoderKLConfig, WanConfig
from vae_lib.planning import DEFAULT_ORDER, Outlook, Route, Work
from vae_lib.ui.backend import Memory
from vae_lib.ui.memory import bar, curve, plot, reach, routes_table, with_taesd

GB = 10**9
WORK = Work(AutoencoderKLConfig(), "decode", 128, 128, 1, torch.device("cuda"), torch.float16)


def outlook(free: int | None, ram: int) -> Outlook:
    return Outlook(planner(free, ram), WORK, DEFAULT_ORDER)


def offload_row(ram: int) -> list[str]:
    seen = outlook(2 * GB, ram)
    table = routes_table(seen, seen.prospects, {Route.OFFLOAD: curve(WORK, Route.OFFLOAD)})
    (row,) = (row for row in table.split("<tr>") if "Tiled + RAM" in row)
    return [re.sub("<.*?>", "", cell).replace("\u00a0", " ") for cell in re.findall(r"<td.*?</td>", row)]


@pytest.mark.slow
def test_offloading_is_bounded_by_main_memory_too() -> None:
    _, how, needs, least, _, up_to = offload_row(ram=6 * GB)
    assert how.startswith("Tiled + RAM in ")
    assert needs.endswith(" + 269 MB RAM")
    assert float(least.split()[0]) <= float(needs.split()[0])
    assert up_to == "4800 × 4800"  # 256 bytes a pixel
    assert offload_row(ram=60 * GB)[5] == "14848 × 14848"
    assert "Too little RAM" in offload_row(ram=GB // 4)[1]


@pytest.mark.slow
def test_where_nobody_knows_what_is_free() -> None:
    """As DirectML: no size is shown that nobody knows."""
    unknown = outlook(None, 32 * GB)
    shown = bar(Memory(None, None), 2 * GB, "GPU memory")
    assert "does not report how much of it is free. 2.0 GB needed." in shown
    curves = {Route.TILED: curve(WORK, Route.TILED)}
    table = routes_table(unknown, unknown.prospects, curves)
    (row,) = (row for row in table.split("<tr>") if "<b>Tiled</b>" in row)
    assert "-row bands" in row
    assert "unknown" in row
    assert reach(unknown, unknown.prospects, curves) == ""
    assert "usable now" not in plot(curves, None, 1024)
    assert "usable now: 2.0 GB" in plot(curves, 2 * GB, 1024)


@pytest.mark.slow
def test_how_far_one_gets_in_a_sentence() -> None:
    seen = outlook(2 * GB, 60 * GB)
    curves = {prospect.route: curve(WORK, prospect.route) for prospect in seen.prospects}
    said = reach(seen, seen.prospects, curves).replace("\u00a0", " ")
    assert re.fullmatch(
        r"With 2\.0 GB free, you can decode up to (\d+) × \1 in full, (\d+) × \2 in tiles "
        r"and (\d+) × \3 in tiles kept in RAM, all of them exactly\.",
        said,
    )
    sides = [int(side) for side in re.findall(r"(\d+) ×", said)]
    assert sides == sorted(sides)
    nothing = outlook(0, 0)
    assert (
        reach(nothing, nothing.prospects, curves) == "With 0 bytes free, there is no size that you can decode exactly."
    )


@pytest.mark.parametrize(("operation", "has_one"), [("decode", True), ("encode", False)])
def test_a_taesd_is_offered_where_there_is_one(operation: str, has_one: bool) -> None:
    """Wan's has no encoder."""
    work = Work(WanConfig(), operation, 8, 8, 1, torch.device("cuda"), torch.float16, latent_channels=16)
    seen = Outlook(planner(2 * GB, 8 * GB), work, (Route.FULL,))
    assert any(prospect.route is Route.TAESD for prospect in with_taesd(seen, planner(2 * GB))) is has_one


def test_pages_that_name_themselves_fill_no_table_without_end() -> None:
    pytest.importorskip("gradio")
    from vae_lib.ui import memory_section

    table: dict[str, int] = {}
    for number in range(1000):
        memory_section._remember(table, f"page {number}", number)
        memory_section._remember(table, "page 0", number)
    assert len(table) == memory_section.MOST_SESSIONS
    assert table["page 0"] == table["page 999"] == 999
