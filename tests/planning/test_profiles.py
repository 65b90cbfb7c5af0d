"""Devices are measured and checked once, remembered in one file, and a wrong route is not used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks.small import BF16, CPU, FP16, FP32, SMALL, distance, latents_for, network
from tests.planning.plans import choose, planner
from vae_lib.decode import Ladder
from vae_lib.device import kernels, kinds
from vae_lib.device.kind import Speeds
from vae_lib.engine import Compute, Operation, Tiling
from vae_lib.errors import PlanError
from vae_lib.planning import Profile, Route, Work, calibrate, profiles, trust
from vae_lib.planning.profiles import KnownProfiles
from vae_lib.planning.trial import Trial

CUDA = torch.device("cuda")
SPEEDS = Speeds(1e9, 2e9, 3e9, 4e-6, 5e9)
WORK = Work(SMALL, Operation.DECODE, 24, 24, 1, CUDA, FP32)
ON_CPU = replace(WORK, device=CPU)
PLENTY = 1 << 50


class Machine:
    """The GPU is imitated by the CPU, the file is the test's own, and what is measured and checked is listed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "deep" / "profiles.json"
        self.measured: list[torch.dtype] = []
        self.checked: list[Operation] = []
        self.said: list[str] = []
        self.speeds = SPEEDS
        self.known = KnownProfiles(self.file)

    def restart(self) -> None:
        """The next process."""
        self.known = KnownProfiles(self.file)

    def profile(self, vae: Any = None, work: Work = WORK) -> Profile:
        self.known.check(vae or network(SMALL), Compute(work.device, work.dtype), self.said.append)
        return self.known(work)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    machine, small_check = Machine(tmp_path), trust.small_check

    def measure(device: torch.device, dtype: torch.dtype) -> Speeds:
        machine.measured.append(dtype)
        return machine.speeds

    def on_the_cpu(vae: Any, operation: Operation, compute: Compute, profile: Profile) -> Any:
        machine.checked.append(operation)
        return small_check(vae, operation, Compute(CPU, compute.dtype), profile)

    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels, "_products_keep_up", lambda device, dtype: True)
    monkeypatch.setattr(calibrate, "measure_speeds", measure)
    monkeypatch.setattr(profiles, "free_bytes", lambda device: PLENTY)
    monkeypatch.setattr(profiles, "device_key", lambda device, dtype: f"a {device.type}; {dtype}")
    monkeypatch.setattr(trust, "small_check", on_the_cpu)
    monkeypatch.setattr(trust, "SIDE", 32)
    monkeypatch.setattr(trust, "device_name", lambda device: "a GPU")
    return machine


def spoil(monkeypatch: pytest.MonkeyPatch, *, offload: bool = False, bands: bool = False) -> None:
    ours = Trial.ours

    def other(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        wrong = offload if tiling.offload else bands and tiling.band_bytes <= 1 << 20
        return ours(self, given, tiling) + 0.3 * wrong

    monkeypatch.setattr(Trial, "ours", other)


def test_measured_once_for_each_dtype(machine: Machine) -> None:
    for dtype in (FP32, BF16, FP32, BF16):
        assert machine.known(replace(ON_CPU, dtype=dtype)).speeds == SPEEDS
        machine.restart()
    assert machine.measured == [FP32, BF16]
    assert [path.name for path in machine.file.parent.iterdir()] == ["profiles.json"]


def test_measured_again_where_the_convolutions_are_others(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version before this one measured Winograd's on a CPU on which PyTorch's own are faster."""
    machine.known(ON_CPU)
    machine.restart()
    monkeypatch.setattr(kernels, "of", lambda device, dtype: replace(kinds.of(device).kernels, winograd=False))
    for _ in range(2):
        assert machine.known(ON_CPU).speeds == SPEEDS
        machine.restart()
    assert len(machine.measured) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"a": 1}', '{"a cpu; torch.float32": {"speeds": {"moved": 1}}}', "\udcff"],
)
def test_a_broken_file_is_replaced(machine: Machine, text: str) -> None:
    machine.file.parent.mkdir()
    machine.file.write_bytes(text.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        assert machine.known(ON_CPU).speeds == SPEEDS
        machine.restart()
    assert machine.measured == [FP32]


def test_impossible_speeds_are_measured_again(machine: Machine) -> None:
    machine.known(ON_CPU)
    machine.restart()
    machine.file.write_text(machine.file.read_text().replace("1000000000.0", "-1.0"))
    assert machine.known(ON_CPU).speeds == SPEEDS
    assert len(machine.measured) == 2


def test_a_folder_that_cannot_be_written_to(machine: Machine) -> None:
    machine.file.parent.write_text("a file where the folder should be")
    assert [machine.known(ON_CPU).speeds for _ in range(2)] == [SPEEDS, SPEEDS]
    assert len(machine.measured) == 1


@pytest.mark.parametrize("why", ["memory", "switched off", "failure", "not here"])
def test_the_usual_speeds_where_none_can_be_measured(
    why: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("not implemented for 'Half'")

    if why == "memory":
        monkeypatch.setattr(profiles, "free_bytes", lambda device: 2 * calibrate.BUDGET_BYTES - 1)
    elif why == "switched off":
        monkeypatch.setenv(kernels.SWITCH, "0")
    else:
        monkeypatch.setattr(*((calibrate, "measure_speeds") if why == "failure" else (profiles, "device_key")), fail)
    assert machine.known(ON_CPU) == Profile.usual(ON_CPU)
    assert (machine.measured, machine.file.exists()) == ([], False)


def test_what_another_process_wrote_meanwhile_is_kept(machine: Machine) -> None:
    other = KnownProfiles(machine.file)
    other(replace(ON_CPU, dtype=BF16))
    machine.known(ON_CPU)
    assert set(json.loads(machine.file.read_text())) == {f"a cpu; {dtype}" for dtype in (FP32, BF16)}


def test_a_device_is_checked_once_and_it_is_remembered(machine: Machine) -> None:
    first = machine.profile()
    assert first.plain > 0
    assert not first.distrusted
    assert machine.profile() == first
    machine.restart()
    assert machine.profile() == first
    assert machine.checked == [Operation.DECODE]
    assert machine.profile(work=replace(WORK, dtype=BF16)).plain == 0  # not checked: the weights are fp32
    assert machine.known(replace(WORK, operation=Operation.ENCODE)).plain == 0  # nor was the encode
    (entry,) = [e for key, e in json.loads(machine.file.read_text()).items() if key == "a cuda; torch.float32"]
    assert [name.split(",")[0] for name in entry] == ["speeds", "decode"]


def test_a_wrong_route_is_reported_once_and_not_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, offload=True)
    found = machine.profile()
    assert found.distrusted == {Route.OFFLOAD}
    assert machine.profile() == found
    assert len(machine.said) == 1
    with pytest.raises(PlanError):
        choose(WORK, PLENTY, order=(Route.OFFLOAD,), profile=found)
    assert choose(WORK, PLENTY, profile=found).route is Route.FULL


def test_where_bands_are_wrong_the_plain_network_decodes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, bands=True)
    found = machine.profile()
    assert found.distrusted == {Route.FULL, Route.TILED}
    vae, latents = network(SMALL), latents_for(SMALL, 8, 6, 2)
    assert choose(replace(WORK, height=8, width=6, batch=2), PLENTY, profile=found).is_plain
    ladder = Ladder(vae, planner=planner(PLENTY, profile=found))
    outcome = ladder.decode(latents)
    assert outcome.plan.is_plain
    assert distance(outcome.result, vae.decode(latents)) < 1e-5
    encoded = ladder.encode(vae.decode(latents))
    assert encoded.plan.is_plain
    assert encoded.log_variance is not None


def test_half_a_vae_is_checked_with_what_it_has(machine: Machine) -> None:
    encoder = type(network(SMALL))(SMALL).requires_grad_(False)
    encoder.decoder = None
    machine.profile(encoder)
    assert machine.checked == [Operation.ENCODE]


@pytest.mark.slow
@pytest.mark.parametrize("why", ["memory", "dtype", "overflow", "failure"])
def test_where_it_cannot_be_checked_nothing_is_remembered(
    why: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = WORK
    if why == "memory":
        monkeypatch.setattr(trust, "free_bytes", lambda device: 1000)
    elif why == "dtype":
        work = replace(WORK, dtype=FP16)
    elif why == "overflow":
        monkeypatch.setattr(Trial, "plain", lambda self, given: torch.full((2, 2), float("nan")))
    else:

        def fail(self: Trial, given: Tensor) -> Tensor:
            raise RuntimeError("this device lacks an operation")

        monkeypatch.setattr(Trial, "plain", fail)
    for _ in range(2):
        assert machine.profile(work=work) == replace(Profile.usual(work), speeds=SPEEDS)
    assert len(machine.checked) == 2


def test_a_route_that_fails_is_not_trusted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Trial, "ours", fail)
    assert machine.profile().distrusted == {Route.FULL, Route.TILED, Route.OFFLOAD}


@pytest.mark.slow
def test_a_standing_that_makes_no_sense_is_found_again(machine: Machine) -> None:
    machine.profile()
    for broken in ({"plain": "fast"}, {"wrong": ["sideways"]}, {"plain": 0}, {"dispatch_seconds": None}, 3):
        stored = json.loads(machine.file.read_text())
        entry = stored["a cuda; torch.float32"]
        name = next(name for name in entry if name.startswith("decode"))
        entry[name] = entry[name] | broken if isinstance(broken, dict) else broken
        machine.file.write_text(json.dumps(stored))
        machine.restart()
        assert machine.profile().plain > 0
    assert len(machine.checked) == 6


def test_cpus_are_not_checked_and_it_can_be_switched_off(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.profile(work=ON_CPU).speeds == SPEEDS
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert machine.profile() == Profile.usual(WORK)
    assert machine.checked == []


def test_a_decode_that_waits_for_dispatch_says_what_one_takes(machine: Machine) -> None:
    """And then the plain network, which asks for less, is known to be the faster one for small pictures."""
    machine.speeds = Speeds(1e15, 1e15, 1e15, 1e-6, 1e15)
    assert machine.profile().speeds.dispatch_seconds > 5e-6
    machine.file.unlink()
    machine.restart()
    machine.speeds = Speeds(1e3, 1e3, 1e3, 1e-6, 1e3)
    assert machine.profile().speeds.dispatch_seconds == 1e-6
