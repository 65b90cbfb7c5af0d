"""How fast a device works: measured in a second, in little memory, on the thread's own time."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from tests.networks.small import CPU
from vae_lib.device import PeakMemory
from vae_lib.planning import calibrate


@pytest.mark.slow
def test_measurement_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    random = torch.get_rng_state()
    with PeakMemory(CPU) as peak:
        speeds = calibrate.measure_speeds(CPU, torch.float32)
    assert 0 < peak.bytes < calibrate.BUDGET_BYTES
    assert torch.equal(torch.get_rng_state(), random)  # the user's next picture depends on it
    assert speeds.multiplications > 1e8
    assert speeds.moved > 1e7
    assert speeds.plain_multiplications > 1e8
    assert 1e-8 < speeds.dispatch_seconds < 0.1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts a thread's time too coarsely")
def test_time_in_which_others_had_the_cpu_does_not_count() -> None:
    def work() -> None:
        start = time.thread_time()
        while time.thread_time() < start + 0.005:
            pass
        time.sleep(0.2)

    assert 0.005 <= calibrate._seconds(work, CPU) < 0.15
