"""Events in, sentences out: all of them, for every reader."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vae_lib.decode import Outcome, wording
from vae_lib.engine import Operation, Tiling
from vae_lib.planning import Plan, Route
from vae_lib.planning.events import (
    Asked,
    BelowThreshold,
    Event,
    MaybeOutOfMemory,
    NoScratch,
    OutOfMemory,
    Overflow,
)
from vae_lib.planning.plan import WHOLE
from vae_lib.planning.route import Distrusted, DoesNotFit, FreeUnknown, TooSlow, Unavailable

CPU, HALF = torch.device("cpu"), torch.float16
FULL = Plan(Route.FULL, CPU, HALF, Tiling(WHOLE), 0, 4_300_000_000, 1.0, 1024, 1, free_bytes=2_100_000_000)
TILED = Plan(Route.TILED, CPU, HALF, Tiling(1 << 20), 0, 300_000_000, 3.4, 48, 22, free_bytes=2_100_000_000)
RAM = replace(TILED, route=Route.OFFLOAD, host_bytes=1_000_000_000)
TAESD = Plan(Route.TAESD, CPU, HALF, None, 64, 90_000_000, 0.2, 512, 4, free_bytes=2_100_000_000)
ON_CPU = replace(TILED, route=Route.CPU)
NO_FIT = DoesNotFit(Route.FULL, 4_300_000_000, 2_100_000_000)


def outcome(plan: Plan, *events: Event) -> Outcome:
    return Outcome(torch.zeros(1), plan, 3.4, events)


TABLE: list[tuple[Outcome, str, str]] = [
    (outcome(FULL), "full", "decoded 1024x768 in full (3.4 s). The picture is the same."),
    (
        outcome(TILED, Asked(Route.TILED)),
        "tiled in 48-row bands",
        "decoded 1024x768 in tiles (3.4 s). The picture is the same.",
    ),
    (
        outcome(TILED, NO_FIT),
        "tiled in 48-row bands; full needs 4.3 GB and 2.1 GB was free",
        "decoded 1024x768 in tiles, because only 2.1 GB was free and the full decode needs 4.3 GB (3.4 s). "
        "The picture is the same.",
    ),
    (
        outcome(TILED, FreeUnknown(Route.FULL, 4_300_000_000)),
        "tiled in 48-row bands; full needs 4.3 GB and this device does not report its free memory",
        "decoded 1024x768 in tiles, because the full decode needs 4.3 GB and this device does not report its "
        "free memory (3.4 s). The picture is the same.",
    ),
    (
        outcome(TILED, BelowThreshold(2_100_000_000, 4_000_000_000)),
        "tiled in 48-row bands; 2.1 GB was free, less than the threshold of 4 GB",
        "decoded 1024x768 in tiles, because only 2.1 GB was free and the threshold is 4 GB (3.4 s). "
        "The picture is the same.",
    ),
    (
        outcome(RAM, OutOfMemory(FULL), OutOfMemory(TILED)),
        "tiled + RAM in 48-row bands; full failed: out of memory, although it was predicted to need 4.3 GB; "
        "tiled failed: out of memory, although it was predicted to need 300 MB",
        "decoded 1024x768 in tiles kept in RAM, because the full decode and Tiled ran out of memory (3.4 s). "
        "The picture is the same.",
    ),
    (
        outcome(ON_CPU, OutOfMemory(FULL), OutOfMemory(TILED), OutOfMemory(RAM)),
        "on the CPU in 48-row bands; full failed: out of memory, although it was predicted to need 4.3 GB; "
        "tiled failed: out of memory, although it was predicted to need 300 MB; "
        "tiled + RAM failed: out of memory, although it was predicted to need 300 MB",
        "decoded 1024x768 on the CPU, because the full decode, Tiled and Tiled + RAM ran out of memory (3.4 s). "
        "The picture is the same.",
    ),
    (
        outcome(replace(FULL, dtype=torch.float32), Overflow(FULL)),
        "full in fp32; full failed: NaN or infinite numbers in fp16",
        "decoded 1024x768 in full in fp32, because the full decode failed (NaN or infinite numbers in fp16) (3.4 s). "
        "The picture is the same.",
    ),
    (
        outcome(ON_CPU, Distrusted(Route.FULL), NoScratch(RAM, "The disk is full.")),
        "on the CPU in 48-row bands; full gave a wrong picture when this device was checked; "
        "tiled + RAM failed: The disk is full",
        "decoded 1024x768 on the CPU, because the full decode gave a wrong picture when this device was checked and "
        "Tiled + RAM failed (The disk is full) (3.4 s). The picture is the same.",
    ),
    (
        outcome(TAESD, NO_FIT, TooSlow(Route.OFFLOAD, 300.0)),
        "TAESD in 512-pixel tiles; full needs 4.3 GB and 2.1 GB was free; tiled + RAM would have taken about 5 min",
        "decoded 1024x768 with TAESD, because only 2.1 GB was free and the full decode needs 4.3 GB and Tiled + RAM "
        "would have taken about 5 min (3.4 s). TAESD is an approximation.",
    ),
    (
        outcome(TILED, MaybeOutOfMemory(FULL, "unable to find an engine")),
        "tiled in 48-row bands; full failed: perhaps out of memory: unable to find an engine",
        "decoded 1024x768 in tiles, because the full decode failed (perhaps out of memory: unable to find an engine) "
        "(3.4 s). The picture is the same.",
    ),
    (
        outcome(FULL, Asked(Route.TAESD), Unavailable((Route.TAESD,), "There is no TAESD.")),
        "full; There is no TAESD",
        "decoded 1024x768 in full, because TAESD could not be used (There is no TAESD) (3.4 s). "
        "The picture is the same.",
    ),
]


@pytest.mark.parametrize(("done", "entry", "notice"), TABLE, ids=[row[1] for row in TABLE])
def test_events_to_sentences(done: Outcome, entry: str, notice: str) -> None:
    assert wording.entry(done) == entry
    assert wording.notice(done, Operation.DECODE, 1024, 768) == notice


def test_every_event_has_its_words() -> None:
    from typing import get_args

    told = {type(event) for done, _, _ in TABLE for event in done.events}
    assert told == set(get_args(Event))


def test_an_encode_gives_latents() -> None:
    told = wording.notice(outcome(TILED, NO_FIT), Operation.ENCODE, 512, 512)
    assert told.startswith("encoded 512x512 in tiles, because only 2.1 GB was free and the full encode needs 4.3 GB")
    assert told.endswith("The latents are the same.")


def test_the_planners_and_the_command_lines_line() -> None:
    plan = replace(RAM, why=(NO_FIT, TooSlow(Route.TILED, 75.0)))
    planned = (
        "tiled + RAM in 48-row bands: needs 300 MB of 2.1 GB free and 1.0 GB of main memory; full needs 4.3 GB; "
        "tiled would have taken about 1 min"
    )
    assert wording.planned(plan) == planned
    assert wording.planned(ON_CPU) == "on the CPU in 48-row bands: needs 300 MB of main memory"
    unknown = wording.planned(replace(TILED, free_bytes=None))
    assert unknown == "tiled in 48-row bands: needs 300 MB (this device does not report its free memory)"
    assert wording.line(outcome(FULL)) == wording.planned(FULL) == "full: needs 4.3 GB of 2.1 GB free"
    done = outcome(plan, OutOfMemory(FULL))
    assert wording.line(done) == (f"full failed (out of memory, although it was predicted to need 4.3 GB); {planned}")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0084, "8.4 ms"), (0.84, "840 ms"), (3.44, "3.4 s"), (59.9, "59.9 s"), (301, "5 min")]
)
def test_times(seconds: float, text: str) -> None:
    assert wording.time_text(seconds) == text
