"""Offloading on a device apart from host memory, imitated on the CPU.

Streams are what is imitated: a copy happens at any time between the moment it is asked for and the moment it is waited
for, so that whoever reads too early, or overwrites or frees too early, gets another picture.
"""

from __future__ import annotations

import contextlib
import random
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.decode.test_ladder import TINY, Allocations, ladder
from tests.networks.small import (
    BF16,
    CPU,
    FP32,
    PADDINGS,
    SD,
    SMALL,
    distance,
    images,
    latents_for,
    measured_peak,
    network,
)
from vae_lib.device import transfers
from vae_lib.device.transfers import StreamTransfers, Transfers
from vae_lib.engine import Compute, Edge, Padding, Tiling
from vae_lib.engine.batch import decode, encode_moments
from vae_lib.engine.buffers import HostStore, Memory, Workspace
from vae_lib.engine.maps import Arrivals, FeatureMap
from vae_lib.engine.padding import SEAMLESS, ZEROS
from vae_lib.errors import Cancelled
from vae_lib.planning import Route, Work
from vae_lib.planning.plan import cost_of


class Copy:
    """One that is under way."""

    def __init__(self, target: Tensor, source: Tensor) -> None:
        self.target, self.source, self.done = target.detach(), source.detach(), False

    def run(self) -> None:
        for tensor in (self.target, self.source):
            users = getattr(torch._C, "_storage_Use_Count", None)  # PyTorch 2.2 and later
            storage = tensor.untyped_storage()
            assert users is None or users(storage._cdata) > 2, "the memory is in other hands already"
        self.target.copy_(self.source)
        self.done = True


class Streams(Transfers):
    """Two queues, each in its order, that get on when chance has it; ``chance`` is how often."""

    chance = 0.0
    random = random.Random(0)
    overlapping = True
    started = 0

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._queues: dict[str, list[Copy]] = {"in": [], "out": []}

    def _copy(self, lane: str, target: Tensor, source: Tensor) -> Any:
        type(self).started += 1
        copy = Copy(target, source)
        self._queues[lane].append(copy)
        for queue in self._queues.values():
            while queue and self.random.random() < self.chance:
                queue.pop(0).run()
        return copy

    def wait(self, copied: Any) -> None:
        queue = next((queue for queue in self._queues.values() if copied in queue), [])
        while not copied.done:
            queue.pop(0).run()

    def close(self) -> None:
        for queue in self._queues.values():
            for copy in queue:
                copy.target.copy_(copy.source)
            queue.clear()
        super().close()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> type[Streams]:
    """Host memory is apart from the device's, and copies take their time."""
    monkeypatch.setattr(transfers, "kind_for", lambda device: Streams)
    monkeypatch.setattr(Streams, "chance", 0.0)
    return Streams


@pytest.fixture(autouse=True)
def _predictions_are_of_the_real_device() -> Any:
    yield
    cost_of.cache_clear()


TILINGS = [
    Tiling(1 << 24, offload=True),
    Tiling(1 << 13, offload=True, attention_bytes=1 << 12),
    Tiling(1 << 15, 1, offload=True, attention_bytes=1 << 14),
    Tiling(1 << 16, 2, offload=True),
]


@pytest.mark.slow
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("padding", [ZEROS, SEAMLESS, Padding(Edge.REFLECT, Edge.CIRCULAR)], ids=str)
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_the_picture_is_the_same(tiling: Tiling, padding: Padding, chance: float, apart: type[Streams]) -> None:
    apart.chance = chance
    resting = Tiling(tiling.band_bytes, tiling.recompute, attention_bytes=tiling.attention_bytes)
    for config in (SMALL, SD):
        z, picture = latents_for(config, 9, 7), images(37, 26)
        compute = Compute(CPU, FP32, padding)
        before = apart.started
        decoded = decode(network(config), z, tiling, compute)
        encoded, _ = encode_moments(network(config), picture, tiling, compute)
        assert apart.started > before + 20
        torch.testing.assert_close(decoded, decode(network(config), z, resting, compute), atol=1e-5, rtol=0)
        wanted, _ = encode_moments(network(config), picture, resting, compute)
        torch.testing.assert_close(encoded, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("broken", ["wait", "retire", "early"])
def test_a_mistake_would_show(broken: str, apart: type[Streams], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the imitation is for: without a wait, or with memory given up early, the picture is another one."""
    z, tiling = latents_for(SMALL, 12, 12), Tiling(1 << 13, offload=True, attention_bytes=1 << 12)
    wanted = decode(network(), z, tiling, Compute(CPU, FP32))
    if broken == "wait":
        monkeypatch.setattr(Streams, "wait", lambda self, copied: None)
    elif broken == "retire":
        monkeypatch.setattr(HostStore, "retire", lambda self: None)
    else:
        monkeypatch.setattr(Transfers, "retire", lambda self: self._leaving.clear())
    try:
        picture = decode(network(), z, tiling, Compute(CPU, FP32))
    except AssertionError:
        return
    assert not torch.allclose(picture, wanted, atol=1e-3)


def test_a_decode_that_is_cancelled_leaves_no_copy_behind(apart: type[Streams]) -> None:
    z, tiling, count = latents_for(SMALL, 8, 8), Tiling(1 << 13, offload=True), iter(range(100))
    seen: list[Streams] = []
    made = Streams.__init__

    def keep(self: Streams, device: torch.device) -> None:
        made(self, device)
        seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Streams, "__init__", keep)
        with pytest.raises(Cancelled):
            decode(network(), z, tiling, Compute(CPU, FP32, cancelled=lambda: next(count) > 9))
    assert seen[-1]._queues == {"in": [], "out": []}
    assert seen[-1]._leaving == []


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
def test_memory_that_runs_out_amid_copies(operation: str, apart: type[Streams]) -> None:
    """Copies still under way when a try fails do not reach into the next one's memory."""
    given = latents_for(TINY, 2, 2) if operation == "decode" else images(2, 2)
    vae = network(TINY)
    wanted = vae.decode(given) if operation == "decode" else vae.encode_moments(given)[0]
    apart.chance = 0.2
    getattr(ladder(vae=vae, order=(Route.OFFLOAD,)), operation)(given)  # what is cached for good is there
    with Allocations() as counter:
        getattr(ladder(vae=vae, order=(Route.OFFLOAD,)), operation)(given)
    for k in range(1, counter.count, 17):
        with Allocations(k, k) as memory:
            outcome = getattr(ladder(vae=vae, order=(Route.OFFLOAD, Route.CPU)), operation)(given)
        assert memory.raised == 1
        assert outcome.attempts[0].plan.route is Route.OFFLOAD
        assert distance(outcome.result, wanted) < 1e-5


@pytest.mark.slow
@settings(max_examples=40)
@given(
    operation=st.sampled_from(["decode", "encode"]),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    padding=st.sampled_from(PADDINGS),
    dtype=st.sampled_from([FP32, BF16]),
    power=st.integers(11, 22),
    recompute=st.integers(0, 2),
    attention=st.sampled_from([1 << 14, 1 << 18, 32 << 20]),
)
def test_the_peak_is_predicted(
    operation: str,
    size: tuple[int, int],
    padding: Padding,
    dtype: torch.dtype,
    power: int,
    recompute: int,
    attention: int,
) -> None:
    work = Work(SMALL, operation, *size, 1, CPU, dtype, padding=padding)
    tiling = Tiling(1 << power, recompute, True, attention)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "kind_for", lambda device: Transfers)
        cost_of.cache_clear()
        measured = measured_peak(work, network(SMALL, dtype), tiling)
        predicted = cost_of(work, tiling).peak_bytes
    assert measured <= predicted <= 1.1 * measured


def test_rows_ordered_are_brought_once() -> None:
    class Counting(Transfers):
        brought = 0

        def bring(self, target: Tensor, source: Tensor) -> Any:
            self.brought += source.shape[2]
            return super().bring(target, source)

    store = HostStore(CPU)
    store.transfers = counting = Counting(CPU)
    rows = torch.arange(24.0).view(1, 1, 12, 2)
    source = FeatureMap(12, 2, 1, store)
    for first in range(0, 12, 4):
        source.append(rows[:, :, first : first + 4])
    store.retire()
    arrivals = Arrivals(source, Workspace(Memory(CPU, FP32)), FP32, "rows")
    arrivals.order(0, 5)
    arrivals.order(5, 9)
    for first, last in ((1, 4), (0, 5), (5, 9)):
        ((row, piece),) = arrivals.pieces(first, last)
        assert row == first
        assert torch.equal(piece, rows[:, :, first:last])
    assert counting.brought == 9
    ((_, late),) = arrivals.pieces(10, 12)
    assert torch.equal(late, rows[:, :, 10:])
    arrivals.order(9, 12)
    ((_, piece),) = arrivals.pieces(6, 8)  # the order before the last is still held
    assert torch.equal(piece, rows[:, :, 6:8])
    assert counting.brought == 14
    store.close()


class TestCuda:
    """What is asked of CUDA's streams, of which only the names are real here."""

    @pytest.fixture
    def log(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        log: list[tuple[Any, ...]] = []
        real_stream, real_event = torch.cuda.Stream, torch.cuda.Event

        def stream(name: str) -> Any:
            made = create_autospec(real_stream, instance=True)
            made.wait_stream.side_effect = lambda other: log.append((name, "waits for", other.name))
            made.wait_event.side_effect = lambda event: log.append((name, "waits for", event.name))
            made.record_event.side_effect = lambda: event(name)
            made.name = name
            return made

        def event(of: str) -> Any:
            made = create_autospec(real_event, instance=True)
            made.name = f"{of} {sum(entry[0] == of for entry in log)}"
            made.synchronize.side_effect = lambda: log.append(("CPU", "waits for", made.name))
            return made

        @contextlib.contextmanager
        def on(used: Any) -> Iterator[None]:
            log.append((used.name, "copies"))
            yield

        names, current = iter(("in", "out")), stream("current")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream(next(names)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "stream", on)
        return log

    def test_each_copy_waits_for_what_was_computed_and_is_waited_for(self, log: list[tuple[Any, ...]]) -> None:
        copies, host, rows = StreamTransfers(torch.device("cuda")), torch.ones(2), torch.zeros(2)
        copies.wait(copies.bring(rows, host))
        assert torch.equal(rows, host)
        for _ in range(3):
            copies.send(host, rows)
            copies.retire()
        copies.close()
        sent = [("out", "waits for", "current"), ("out", "copies")]
        assert log == [
            ("in", "waits for", "current"), ("in", "copies"), ("current", "waits for", "in 2"),
            *sent, ("current", "waits for", "out 2"),
            *sent, ("CPU", "waits for", "out 2"), ("current", "waits for", "out 4"),
            *sent, ("CPU", "waits for", "out 4"), ("current", "waits for", "out 6"),
            ("current", "waits for", "in"), ("current", "waits for", "out"),
        ]  # fmt: skip

    def test_what_is_sent_is_held_until_it_is_retired(self, log: list[tuple[Any, ...]]) -> None:
        copies, rows = StreamTransfers(torch.device("cuda")), torch.zeros(2)
        held = weakref.ref(rows)
        copies.send(torch.ones(2), rows)
        del rows
        assert held() is not None
        copies.retire()
        assert held() is None

    def test_which_device_takes_which(self, monkeypatch: pytest.MonkeyPatch) -> None:
        devices = [torch.device(name) for name in ("cpu", "cuda:1", "mps")]
        monkeypatch.delenv(transfers.SWITCH, raising=False)
        assert [transfers.kind_for(device) for device in devices] == [None, StreamTransfers, Transfers]
        monkeypatch.setenv(transfers.SWITCH, "0")
        assert [transfers.kind_for(device) for device in devices] == [None, Transfers, Transfers]
