"""The check says what is so: the same picture, another one, a way that fails, and what there was no room for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.gpu import as_on_a_gpu
from tests.networks.small import BF16, CPU, FP32, SMALL, network
from vae_lib.decode import check as module
from vae_lib.decode.check import CPU_SIZES, PROBE, Limits, Report, Trial, check, machine
from vae_lib.engine import Compute, Operation, Tiling
from vae_lib.errors import Cancelled, PlanError
from vae_lib.networks import known, sample_network

LIMITS = Limits(sizes=(32, 48))
Ours = Callable[[Trial, Tensor, Tiling], Tensor]


def run(operation: Operation = Operation.DECODE, limits: Limits = LIMITS, **compute: Any) -> Report:
    return check(network(SMALL), operation, Compute(CPU, FP32, **compute), limits)


@pytest.mark.slow
@pytest.mark.parametrize("operation", Operation)
def test_a_device_that_is_right(operation: Operation) -> None:
    report = run(operation)
    assert [f.side for f in report.findings] == [32, 32, 32, 48, 48, 48]
    assert {f.what.split(" in ")[0] for f in report.findings} == {"full", "tiled", "tiled + RAM"}
    for finding in report.findings:
        assert finding.same
        assert finding.error is not None
        assert finding.error < 1e-4
        assert 0 < finding.peak_bytes <= finding.predicted_bytes <= 1.1 * finding.peak_bytes
        assert finding.dispatches > 100
        assert min(finding.seconds, finding.plain_seconds) > 0
    assert report.left_out == ()
    assert not report.is_wrong
    assert report.verdict.startswith("Every route gives the plain network's picture. Full takes ")


@pytest.mark.slow
def test_the_way_a_gpu_goes_is_checked_too() -> None:
    with as_on_a_gpu("cpu"):
        assert not run().is_wrong


@pytest.mark.slow
def test_a_route_that_gives_another_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: Ours = Trial.ours
    monkeypatch.setattr(Trial, "ours", lambda self, given, tiling: ours(self, given, tiling) + 0.1 * tiling.offload)
    report = run()
    assert report.is_wrong
    assert report.verdict.startswith("tiled + RAM in ")
    assert "decode by another route until it is mended" in report.verdict
    marked = [line for line in report.text().splitlines() if "WRONG" in line]
    assert len(marked) == 2
    assert all("tiled + RAM" in line for line in marked)


def test_pictures_of_no_numbers_are_not_the_same() -> None:
    trial, wanted = Trial(network(SMALL), Operation.DECODE, 32, Compute(CPU, BF16)), torch.ones(2, 3)
    assert trial.same(wanted, wanted)
    assert trial.same(wanted * 1.05, wanted)
    assert not trial.same(wanted * 1.2, wanted)
    assert not trial.same(wanted * float("nan"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("no kernel\nmore"), "no kernel"),
    ],
)
def test_a_route_that_fails(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: Ours = Trial.ours

    def fail(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        if tiling.offload:
            raise error
        return ours(self, given, tiling)

    monkeypatch.setattr(Trial, "ours", fail)
    report = run()
    assert not report.is_wrong
    assert {f.problem for f in report.findings} == {"", said}
    assert "could not be run here; every other route gives" in report.verdict
    assert said in report.text()


@pytest.mark.slow
def test_what_there_is_no_memory_or_time_for_is_left_out() -> None:
    none = run(limits=Limits(sizes=(32, 48), budget=lambda device: 1000))
    assert (none.findings, none.left_out) == ((), (32, 48))
    assert none.verdict.startswith("Nothing could be checked")
    short = run(limits=Limits(sizes=(32, 48), seconds=0.0))
    assert {f.side for f in short.findings} == set()
    hasty = run(limits=Limits(sizes=(32, 4800), seconds=30.0))
    assert ({f.side for f in hasty.findings}, hasty.left_out) == ({32}, (4800,))
    assert "Left out for lack of time or memory: 4800x4800." in hasty.text()


def test_sizes_suit_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []

    def note(trial: Trial) -> Any:
        sides.append(trial.side)
        if trial.side != PROBE:
            raise KeyboardInterrupt
        return torch.randn(1, 4, PROBE // 2, PROBE // 2)

    monkeypatch.setattr(Trial, "given", note)
    with pytest.raises(KeyboardInterrupt):
        run(limits=Limits())
    assert sides == [PROBE, CPU_SIZES[0]]


def test_it_can_be_stopped() -> None:
    """Between bands, too."""
    for after in (0, 3, 30):
        asked = iter(range(1000))
        with pytest.raises(Cancelled):
            run(cancelled=lambda asked=asked, after=after: next(asked) >= after)


def test_the_time_is_kept_in_the_middle_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found until then stays, and the size is among those left out."""
    ours: Ours = Trial.ours
    clock = [0.0]

    def slow(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        clock[0] += 5
        return ours(self, given, tiling)

    monkeypatch.setattr(Trial, "ours", slow)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    report = run(limits=Limits(sizes=(32, 48), seconds=12.0))
    assert [f.what.split(" in ")[0] for f in report.findings] == ["full"]
    assert report.left_out == (32, 48)


def test_a_type_that_is_too_slow_is_seen_on_a_small_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, clock, sides = Trial.plain, [0.0], list[int]()

    def slow(self: Trial, given: Tensor) -> Tensor:
        clock[0] += 6
        sides.append(self.side)
        return plain(self, given)

    monkeypatch.setattr(Trial, "plain", slow)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    report = run(limits=Limits())
    assert (report.findings, report.left_out, sides) == ((), CPU_SIZES, [PROBE])
    assert "too slow here for the time allowed" in report.verdict
    assert report.text().count("\n") == 2  # the machine, what was left out, the verdict


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("no kernel")])
def test_a_plain_network_that_does_not_run_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trial, given: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(Trial, "plain", fail)
    with pytest.raises(PlanError, match=r"does not run on cpu in fp32 \((there is no memory|no kernel)"):
        run()


@pytest.mark.slow
def test_the_report_is_a_table_without_names_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.node", lambda: "annas-laptop")
    report = run(limits=Limits(sizes=(32,)))
    first, head, *rows = report.text().splitlines()
    assert first == report.machine == machine(Compute(CPU, FP32))
    assert "annas-laptop" not in report.text()
    assert re.search(r"VAE Guard \d.*PyTorch \d.*fp32; \w+; Python 3", first)
    assert head.split()[:2] == ["Size", "Route"]
    assert len(rows) == 4  # and the verdict
    assert rows[0].startswith("32x32")


def test_the_users_random_numbers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "AutoencoderKLConfig", lambda **halves: SMALL)
    network(SMALL)  # made once, from a seed of its own
    before = torch.get_rng_state()
    first = sample_network("decoder")
    again = sample_network("decoder")
    run(limits=Limits(sizes=(32,)))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
