"""The peak that is measured is the peak."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from tests.networks.small import CPU
from vae_lib.device import PeakMemory


def test_counts_what_is_alive_together() -> None:
    with PeakMemory(CPU) as peak:
        a = torch.zeros(1000)
        b = a + 1
        del a, b
        c = torch.zeros(1500)
        del c
    assert peak.bytes == 8000


def test_views_and_what_was_there_before_cost_nothing() -> None:
    before = torch.zeros(10_000)
    with PeakMemory(CPU) as peak:
        view = before.view(100, 100)[10:20].transpose(0, 1)
        before.add_(1)
        view.mul_(2)
        small = view.sum()
    assert peak.bytes == small.nbytes


def test_files_are_not_memory(tmp_path: Path) -> None:
    path = tmp_path / "band.bin"
    path.write_bytes(bytes(4000))
    with PeakMemory(CPU) as peak:
        band = torch.from_file(str(path), shared=True, size=1000, dtype=torch.float32)
        band.view(10, 100).fill_(1)
    assert peak.bytes == 0
    assert path.read_bytes() != bytes(4000)


def test_an_error_passes_and_the_measure_stands() -> None:
    peak = PeakMemory(CPU)

    def fail() -> None:
        with peak:
            torch.zeros(250)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert peak.bytes == 1000


def test_what_is_not_counted_is_not_known_and_costs_nothing() -> None:
    with PeakMemory(CPU, counts=False) as peak:
        assert _get_current_dispatch_mode() is None
        torch.zeros(1000)
    assert peak.known is None
    with PeakMemory(CPU) as counted:
        torch.zeros(1000)
    assert counted.known == counted.bytes == 4000
