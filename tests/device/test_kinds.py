"""Kinds of device: the folder that lists them, and a new one, which is one file."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.engine.two_devices import THERE, There, TwoDevices
from tests.networks.small import CPU, FP16, FP32, SMALL, distance, latents_for, network
from tests.planning.plans import candidates, choose
from vae_lib.decode import Ladder
from vae_lib.device import choose_device, kernels, kinds, transfers
from vae_lib.device.kind import Allocator, Kernels, Kind, Speeds
from vae_lib.engine import Operation, Tiling
from vae_lib.errors import InputError
from vae_lib.planning import Planner, Route, Work
from vae_lib.planning.plan import WHOLE, cost_of

FOLDER = Path(kinds.__file__).parent
WORK = Work(SMALL, Operation.DECODE, 96, 96, 1, THERE, FP32)


@pytest.fixture(autouse=True)
def _of_real_devices() -> Iterator[None]:
    yield
    cost_of.cache_clear()


def register(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setitem(kinds.KNOWN, kind.name, kind)
    cost_of.cache_clear()


def test_every_file_is_a_kind_and_every_kind_a_file() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}
    assert files == {"cpu", "cuda", "directml", "mps", "xpu"}
    assert set(kinds.KNOWN) == files - {"directml"} | {"privateuseone"}
    for name, kind in kinds.KNOWN.items():
        assert kinds.of(torch.device(name)) is kinds.of(torch.device(name, 1)) is kind
        for field in dataclasses.fields(Kind):
            assert hasattr(kind, field.name)


def test_what_differs() -> None:
    """Of each kind the facts that are not those of a device of which nothing is known."""
    not_quite = (4 << 30) - (2 << 20)
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    limits = {"largest_block": not_quite, "float64": False}
    assert {name: differing(kind) for name, kind in kinds.KNOWN.items()} == {
        "cpu": {
            "in_main_memory": True, "asynchronous": False, "keeps_freed_memory": False, "usual_dtype": FP32,
            "kernels": Kernels(mixes=False, winograd=True), "stretch_elements": 1 << 19, "clock": clock,
        },
        "cuda": {
            "allocator": Allocator(8 << 20, 1 << 20, 32 << 20), "streams": True, "fuses_attention": True,
            "tensor_cores": True, "kernels": Kernels(norms=True, attention=True, bias_apart=True),
        },
        "mps": limits, "xpu": limits, "privateuseone": limits,
    }  # fmt: skip


def differing(kind: Kind) -> dict[str, object]:
    usual = Kind(kind.name)
    names = (field.name for field in dataclasses.fields(Kind))
    return {name: getattr(kind, name) for name in names if getattr(kind, name) != getattr(usual, name)}


def test_a_type_that_no_file_names() -> None:
    unknown = kinds.of(THERE)
    assert unknown == Kind("meta")
    assert unknown is kinds.of(torch.device("meta", 0))
    assert (unknown.runtime, unknown.count(), unknown.free(THERE), unknown.statistics(THERE)) == (
        None,
        0,
        None,
        {},
    )
    assert (unknown.card(THERE), unknown.driver()) == ("meta", "")


@pytest.mark.parametrize(
    ("name", "dtype", "wanted"),
    [
        ("cuda", FP32, Speeds(4e12, 250e9, 10e9, 2e-5, 4e12)),
        ("meta", FP16, Speeds(16e12, 250e9, 10e9, 2e-5, 16e12)),
        ("cpu", FP32, Speeds(96e9, 15e9, 2e9, 5e-6, 96e9)),
        ("cpu", FP16, Speeds(12e9, 1.875e9, 2e9, 5e-6, 12e9)),
    ],
)
def test_speeds(name: str, dtype: torch.dtype, wanted: Speeds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert kinds.of(torch.device(name)).speeds(dtype) == pytest.approx(wanted)


def test_the_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind, and in words where the name is none."""
    for kind in list(kinds.KNOWN.values()):
        monkeypatch.setattr(type(kind), "count", lambda self: 2 * (self.name in ("cpu", "xpu")))
    assert choose_device() == torch.device("xpu")
    assert choose_device("xpu:1") == torch.device("xpu", 1)
    for name, sentence in (
        ("gpu", r"no device called 'gpu'; use cpu or xpu\."),
        ("xpu:2", r"no xpu:2; this machine has 2 XPU device\(s\)"),
        ("mps", "no usable mps device"),
    ):
        with pytest.raises(InputError, match=sentence):
            choose_device(name)


def test_a_new_kind_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tpu.py").write_text(
        'from vae_lib.device.kind import Kind\n\nKIND = Kind("xla", largest_block=5)\n', encoding="utf-8"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, f"{kinds.__name__}.tpu", None)
    del sys.modules[f"{kinds.__name__}.tpu"]
    monkeypatch.setattr(kinds, "KNOWN", kinds.listed())
    assert kinds.of(torch.device("xla")).largest_block == 5
    assert list(kinds.KNOWN) == ["cpu", "cuda", "privateuseone", "mps", "xpu", "xla"]


def test_plans_keep_to_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    free = choose(WORK, 1 << 40, order=[Route.FULL])
    assert free.is_whole
    register(monkeypatch, Kind("meta", largest_block=free.largest_bytes - 1))
    limited = choose(WORK, 1 << 40, order=[Route.FULL, Route.TILED])
    assert not limited.is_whole
    assert limited.largest_bytes < free.largest_bytes
    register(monkeypatch, Kind("meta", largest_block=1 << 10))
    assert not limited.fits(1 << 40)


def test_its_allocator_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = cost_of(WORK, Tiling(WHOLE)).peak_bytes
    register(monkeypatch, Kind("meta", allocator=Allocator(rest=12345)))
    assert cost_of(WORK, Tiling(WHOLE)).peak_bytes == arrays + 12345
    register(monkeypatch, Kind("meta", allocator=Allocator(left_over=678)))
    assert cost_of(WORK, Tiling(WHOLE)).peak_bytes == arrays + 678


@pytest.mark.slow
def test_how_its_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(transfers.SWITCH, raising=False)
    for kind, wanted in (
        (Kind("meta"), transfers.Transfers),
        (Kind("meta", streams=True), transfers.StreamTransfers),
        (Kind("meta", in_main_memory=True), None),
    ):
        register(monkeypatch, kind)
        assert transfers.kind_for(THERE) is wanted
        host = [plan.host_bytes for plan in candidates(WORK, Route.OFFLOAD)]
        assert all(host) is (wanted is not None)


@pytest.mark.parametrize("float64", [True, False])
@pytest.mark.parametrize("usual", [Kernels(attention=True), Kernels(mixes=False, winograd=True)])
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD])
def test_it_decodes(route: Route, usual: Kernels, float64: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a second device with numbers of its own: as a GPU would, or as a CPU with memory apart."""
    register(monkeypatch, Kind("meta", kernels=usual, float64=float64, stretch_elements=1 << 9))
    kernels._found.cache_clear()
    latents, vae = latents_for(SMALL, 6, 5), network(SMALL)
    ladder = Ladder(vae=vae, device=THERE, order=(route,), planner=Planner(lambda device: 1 << 30))
    with TwoDevices():
        outcome = ladder.decode(latents.to(THERE))
    kernels._found.cache_clear()
    assert outcome.plan.device == THERE
    assert outcome.plan.route is route
    assert isinstance(outcome.result, There)
    assert distance(outcome.result.numbers, vae.decode(latents)) < 1e-5


def test_a_kind_is_nothing_but_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those of the CPU it is planned for as the CPU is."""
    cpu = kinds.of(CPU)
    register(monkeypatch, dataclasses.replace(cpu, name="meta"))
    here = [cost_of(dataclasses.replace(WORK, device=CPU), Tiling(size)) for size in (WHOLE, 1 << 20)]
    assert [cost_of(WORK, Tiling(size)) for size in (WHOLE, 1 << 20)] == here
