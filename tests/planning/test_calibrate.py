from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch

from vae_lib.device import PeakMemory
from vae_lib.planning import calibrate
from vae_lib.planning.plan import Rates

CPU = torch.device("cpu")
RATES = Rates(1e9, 2e9, 3e9, 4e-4, 5e9)


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[torch.dtype]:
    """The cache is in a folder of the test's own; what is measured is listed."""
    calls: list[torch.dtype] = []

    def measure(device: torch.device, dtype: torch.dtype) -> Rates:
        calls.append(dtype)
        return RATES

    monkeypatch.delenv(calibrate.SWITCH, raising=False)
    monkeypatch.setattr(calibrate, "_in_use", {})
    monkeypatch.setattr(calibrate, "cache_path", lambda: tmp_path / "deep" / "rates.json")
    monkeypatch.setattr(calibrate, "measure_rates", measure)
    return calls


def test_measures_once_for_each_dtype(measured: list[torch.dtype]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
        assert calibrate.rates_for(CPU, dtype) == RATES
        calibrate._in_use.clear()
    assert measured == [torch.float32, torch.bfloat16]
    assert [path.name for path in calibrate.cache_path().parent.iterdir()] == ["rates.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', '{"a": {"moved": 1}}', "\udcff"])
def test_broken_cache_is_replaced(measured: list[torch.dtype], text: str) -> None:
    path = calibrate.cache_path()
    path.parent.mkdir()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        assert calibrate.rates_for(CPU, torch.float32) == RATES
        calibrate._in_use.clear()  # the next process
    assert len(measured) == 1


def test_impossible_rates_are_measured_again(measured: list[torch.dtype]) -> None:
    calibrate.rates_for(CPU, torch.float32)
    calibrate._in_use.clear()
    path = calibrate.cache_path()
    path.write_text(path.read_text().replace("1000000000.0", "-1.0"))
    assert calibrate.rates_for(CPU, torch.float32) == RATES
    assert len(measured) == 2


def test_cache_that_cannot_be_written(measured: list[torch.dtype]) -> None:
    calibrate.cache_path().parent.write_text("a file where the folder should be")
    for _ in range(2):
        assert calibrate.rates_for(CPU, torch.float32) == RATES
    assert len(measured) == 1


def test_skipped_where_memory_is_short(monkeypatch: pytest.MonkeyPatch, measured: list[torch.dtype]) -> None:
    monkeypatch.setattr(calibrate, "free_bytes", lambda device: 2 * calibrate.BUDGET_BYTES - 1)
    assert calibrate.rates_for(CPU, torch.float32) is None
    assert measured == []


def test_switched_off(monkeypatch: pytest.MonkeyPatch, measured: list[torch.dtype]) -> None:
    monkeypatch.setenv(calibrate.SWITCH, "0")
    assert calibrate.rates_for(CPU, torch.float32) is None
    assert measured == []


def test_measurement_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device, dtype: torch.dtype) -> Rates:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(calibrate, "measure_rates", fail)
    assert calibrate.rates_for(CPU, torch.float16) is None
    assert not calibrate.cache_path().exists()


def test_measurement_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    random = torch.get_rng_state()
    with PeakMemory(CPU) as peak:
        rates = calibrate.measure_rates(CPU, torch.float32)
    assert 0 < peak.bytes < calibrate.BUDGET_BYTES
    assert torch.equal(torch.get_rng_state(), random)  # the user's next picture depends on it
    assert rates.multiplications > 1e8
    assert rates.moved > 1e7
    assert rates.plain_multiplications > 1e8
    assert 1e-8 < rates.dispatch_seconds < 0.1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts a thread's time too coarsely")
def test_time_in_which_others_had_the_cpu_does_not_count() -> None:
    def work() -> None:
        start = time.thread_time()
        while time.thread_time() < start + 0.005:
            pass
        time.sleep(0.2)

    assert 0.005 <= calibrate._seconds(work, CPU) < 0.15
