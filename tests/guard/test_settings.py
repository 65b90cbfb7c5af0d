"""The settings of a config.json that may hold anything: the device that decodes in another's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.guard.fake_host import FakeHost
from vae_lib.device import kinds
from vae_lib.device.kind import Kind
from vae_lib.engine import Operation
from vae_lib.guard import Guard, settings
from vae_lib.planning import Preference, Route

SECOND = torch.device("xpu", 1)


@dataclass(frozen=True)
class TwoCards(Kind):
    """Two GPUs that are not there."""

    def count(self) -> int:
        return 2

    def free(self, device: torch.device) -> int | None:
        return 1 << 40


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(kinds.KNOWN, "xpu", TwoCards("xpu"))
    return


def read(value: object) -> tuple[torch.device, list[str]]:
    said: list[str] = []
    found = settings.read({"vae_guard_spare": value}, lambda key, text: said.append(text))
    return found.spare, said


def test_the_devices_that_are_here(cards: None) -> None:
    assert settings.spare_devices()[0] == "CPU"
    assert {"xpu:0", "xpu:1"} <= set(settings.spare_devices())
    assert read("xpu:1") == (SECOND, [])
    assert read("CPU") == (torch.device("cpu"), [])


@pytest.mark.parametrize("value", ["xpu:2", "cpu", "", 1, None, ["CPU"]])
def test_another_one_is_reported_and_the_cpu_taken(cards: None, value: Any) -> None:
    device, said = read(value)
    assert device == torch.device("cpu")
    assert len(said) == 1
    assert "CPU, xpu:0, xpu:1" in said[0]


def test_all_that_is_wrong_is_said_at_once_and_as_it_is_written() -> None:
    said: list[str] = []
    values = {"vae_guard_mode": True, "vae_guard_keep": None, "vae_guard_encode": "yes", "vae_guard_reserve": 64}
    found = settings.read(values, lambda key, text: said.append(text))
    assert found == settings.Settings(reserve_mb=64)
    assert said == [
        "the defaults of 3 settings are used, for config.json has invalid values: vae_guard_mode is true and must be "
        'one of Automatic (by predicted need), Fixed threshold; vae_guard_encode is "yes" and must be true or false; '
        "vae_guard_keep is null and must be a number from 0 to 64. Choose others in Settings > VAE Guard, and apply "
        "them."
    ]


def test_a_card_that_was_taken_out(tmp_path: Path) -> None:
    host = FakeHost(tmp_path, {"vae_guard_spare": "xpu:1"})
    guard = Guard(host)  # type: ignore[arg-type]
    assert guard.settings().spare == torch.device("cpu")
    assert guard.settings() == guard.settings()
    assert len(host.told) == 1


def test_the_ladder_has_it(cards: None, tmp_path: Path) -> None:
    host: Any = FakeHost(tmp_path, {"vae_guard_spare": "xpu:1"})
    guard = Guard(host)
    ladder = guard.ladder(host.loaded, Operation.DECODE, torch.device("cpu"), Preference.of((Route.FULL, Route.CPU)))
    outlook = ladder.outlook(ladder.work("decode", 8, 8, 1))
    prospect = outlook.of(Route.CPU)
    assert prospect.now is not None
    assert prospect.now.device == SECOND
    assert Route.CPU in [prospect.route for prospect in outlook.prospects]
