"""The small check before the first decode on a device: once, remembered, and a wrong route is not used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.networks.small import CPU, FP16, FP32, SMALL, distance, latents_for, network
from vae_lib.decode import Ladder
from vae_lib.decode.check import Trial
from vae_lib.engine import Compute, Operation, Tiling
from vae_lib.errors import PlanError
from vae_lib.planning import Route, Work, calibrate, choose, trust
from vae_lib.planning.plan import Rates, default_rates

CUDA = torch.device("cuda")
COMPUTE = Compute(CUDA, FP32)
RATES = Rates(1e9, 2e9, 3e9, 4e-6, 5e9)


@pytest.fixture(autouse=True)
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Operation]:
    """The device is imitated by the CPU, the cache is the test's own, and what is tried is listed."""
    done: list[Operation] = []
    small_check = trust._small_check

    def on_the_cpu(vae: Any, operation: Operation, compute: Compute, rates: Rates) -> Any:
        done.append(operation)
        return small_check(vae, operation, Compute(CPU, compute.dtype), rates)

    monkeypatch.delenv(calibrate.SWITCH, raising=False)
    monkeypatch.setattr(trust, "_standings", {})
    monkeypatch.setattr(trust, "_small_check", on_the_cpu)
    monkeypatch.setattr(trust, "SIDE", 32)
    monkeypatch.setattr(trust, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(calibrate, "device_key", lambda device, dtype: f"a GPU; {dtype}")
    monkeypatch.setattr(calibrate, "rates_for", lambda device, dtype: RATES)
    monkeypatch.setattr(calibrate, "cache_path", lambda name: tmp_path / "deep" / name)
    return done


def rates(said: list[str] | None = None, compute: Compute = COMPUTE, vae: Any = None) -> Rates | None:
    told = said.append if said is not None else lambda text: pytest.fail(text)
    return trust.trusted_rates(vae or network(SMALL), compute, told)


def spoil(monkeypatch: pytest.MonkeyPatch, *, offload: bool = False, bands: bool = False) -> None:
    ours = Trial.ours

    def other(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        wrong = (tiling.offload and offload) or (
            tiling.band_bytes <= 1 << 20 and not tiling.offload and bands
        )
        return ours(self, given, tiling) + 0.3 * wrong

    monkeypatch.setattr(Trial, "ours", other)


def test_a_device_is_tried_once_and_it_is_remembered(trials: list[Operation], tmp_path: Path) -> None:
    first = rates()
    assert first is not None
    assert first.wrong == frozenset()
    assert first.plain > 0
    assert rates() == first
    trust._standings.clear()  # the next process
    assert rates() == first
    assert trials == [Operation.DECODE]
    assert (
        rates(compute=Compute(CUDA, torch.bfloat16)) is not None
    )  # another dtype was not tried: the weights are fp32
    (entry,) = json.loads((tmp_path / "deep" / trust.FILE).read_text()).items()
    assert "a GPU; torch.float32; decode; VAE Guard" in entry[0]


def test_a_wrong_route_is_told_once_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, offload=True)
    said: list[str] = []
    found = rates(said)
    assert found is not None
    assert found.wrong == {Route.OFFLOAD}
    assert len(said) == 1
    assert "a GPU, fp32) the tiled + RAM decode gives another picture" in said[0]
    assert rates(said) == found
    assert len(said) == 1
    work = Work(SMALL, Operation.DECODE, 24, 24, 1, CUDA, FP32)
    with pytest.raises(PlanError, match="None of the allowed ways"):
        choose(work, 1 << 50, order=(Route.OFFLOAD,), rates=found)
    assert choose(work, 1 << 50, rates=found).route is Route.FULL


def test_where_bands_are_wrong_the_plain_network_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, bands=True)
    said: list[str] = []
    found = rates(said)
    assert found is not None
    assert found.wrong == {Route.FULL, Route.TILED}
    vae, latents = network(SMALL), latents_for(SMALL, 8, 6, 2)
    plan = choose(Work(SMALL, Operation.DECODE, 8, 6, 2, CUDA, FP32), 1 << 50, rates=found)
    assert plan.is_plain
    outcome = Ladder(vae, rates=found).decode(latents)
    assert outcome.plan.is_plain
    assert distance(outcome.result, vae.decode(latents)) < 1e-5
    encoded = Ladder(vae, rates=found).encode(vae.decode(latents))
    assert encoded.plan.is_plain
    assert encoded.log_variance is not None


def test_half_a_vae_is_tried_with_what_it_has(trials: list[Operation]) -> None:
    encoder = type(network(SMALL))(SMALL).requires_grad_(False)
    encoder.decoder = None
    assert rates(vae=encoder) is not None
    assert trials == [Operation.ENCODE]


@pytest.mark.parametrize("why", ["memory", "dtype", "overflow", "failure"])
def test_where_it_cannot_be_tried_nothing_is_remembered(
    why: str, trials: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = COMPUTE
    if why == "memory":
        monkeypatch.setattr(trust, "free_bytes", lambda device: 1000)
    elif why == "dtype":
        compute = Compute(CUDA, FP16)
    elif why == "overflow":
        monkeypatch.setattr(Trial, "plain", lambda self, given: torch.full((2, 2), float("nan")))
    else:

        def fail(self: Trial, given: Tensor) -> Tensor:
            raise RuntimeError("this device lacks an operation")

        monkeypatch.setattr(Trial, "plain", fail)
    for _ in range(2):
        assert rates(compute=compute) == RATES
    assert len(trials) == 2


def test_a_way_that_fails_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trial, given: Tensor, tiling: Tiling) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Trial, "ours", fail)
    found = rates([])
    assert found is not None
    assert found.wrong == {Route.FULL, Route.TILED, Route.OFFLOAD}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "null"])
def test_a_broken_cache_is_replaced(text: str, trials: list[Operation], tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / trust.FILE).write_text(text)
    first = rates()
    trust._standings.clear()
    assert rates() == first
    assert len(trials) == 1


def test_a_standing_that_makes_no_sense_is_found_anew(trials: list[Operation], tmp_path: Path) -> None:
    rates()
    path = tmp_path / "deep" / trust.FILE
    for broken in ({"plain": "fast"}, {"wrong": ["sideways"]}, {"plain": 0}, {"dispatch_seconds": None}, 3):
        ((key, good),) = json.loads(path.read_text()).items()
        path.write_text(json.dumps({key: good | broken if isinstance(broken, dict) else broken}))
        trust._standings.clear()
        assert rates() is not None
    assert len(trials) == 6


def test_cpus_are_not_tried_and_it_can_be_switched_off(
    trials: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rates(compute=Compute(CPU, FP32)) == RATES
    monkeypatch.setenv(calibrate.SWITCH, "0")
    assert rates() == RATES
    assert trials == []


def test_without_measured_rates_the_usual_ones_are_kept_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "rates_for", lambda device, dtype: None)
    found = rates()
    assert found is not None
    assert found.multiplications == default_rates(CUDA, FP32).multiplications


def test_a_decode_that_waits_for_dispatch_says_what_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then the plain network, which asks for less, is known to be the faster one for small pictures."""
    fast = Rates(1e15, 1e15, 1e15, 1e-6, 1e15)
    monkeypatch.setattr(calibrate, "rates_for", lambda device, dtype: fast)
    found = rates()
    assert found is not None
    assert found.dispatch_seconds > 5 * fast.dispatch_seconds
    slow = Rates(1e3, 1e3, 1e3, 1e-6, 1e3)
    trust._standings.clear()
    calibrate.write_json(calibrate.cache_path(trust.FILE), {})
    monkeypatch.setattr(calibrate, "rates_for", lambda device, dtype: slow)
    found = rates()
    assert found is not None
    assert found.dispatch_seconds == slow.dispatch_seconds
