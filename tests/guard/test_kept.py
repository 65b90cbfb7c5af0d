"""The kept latents, which generations, the page and the API list and change at once: nothing is lost, nothing twice."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.guard.fake_host import FakeHost, FakeVAE
from vae_lib.files import is_gone
from vae_lib.guard import Guard, Kept, kept
from vae_lib.guard.generation import Generation
from vae_lib.guard.request import Request

LATENTS = torch.zeros(1, 4, 2, 2)
VAE: Any = FakeVAE(None)


def guard_in(folder: Path, **values: object) -> Guard:
    host: Any = FakeHost(folder, values, loaded=None)
    return Guard(host)


def batch(guard: Guard, *, decoded: bool) -> Kept:
    """What a generation of one batch keeps; one that could not be decoded has a file."""
    generation = Generation(type("P", (), {"seed": 1})(), Request())
    held = guard.kept.hold(generation, VAE, LATENTS)
    assert held is not None
    if decoded:
        guard.kept.finished(held, generation, [])
    else:
        guard.kept.failed(held)
    return held


def listed_once(guard: Guard) -> set[str]:
    counted = Counter(item.id for item in guard.kept.items())
    assert set(counted.values()) <= {1}, counted
    return set(counted)


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_a_batch_that_is_added_while_the_files_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = guard_in(tmp_path, vae_guard_keep=1)
    older = [batch(guard, decoded=False) for _ in range(3)]  # the last of them in RAM, the others files
    made, threads = [], []

    def look(path: Path) -> bool:
        if not threads:
            thread = threading.Thread(target=lambda: made.append(batch(guard, decoded=False)))
            threads.append(thread)
            thread.start()
            thread.join(0.3)
        return is_gone(path)

    monkeypatch.setattr(kept, "is_gone", look)
    listed_once(guard)
    threads[0].join(10)
    assert listed_once(guard) == {item.id for item in [*older, *made]}


@pytest.mark.slow
def test_readers_and_generations_at_once(tmp_path: Path) -> None:
    guard = guard_in(tmp_path, vae_guard_keep=2)
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            listed_once(guard)
            for item in guard.kept.items():
                item.latents()
                guard.kept.item(item.id)

    def generate(_: int) -> list[Kept]:
        return [batch(guard, decoded=False) for _ in range(40)]

    with switching_often(), ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            made = [item for some in pool.map(generate, range(3)) for item in some]
        finally:
            over.set()
        for reader in readers:
            reader.result(60)
    assert listed_once(guard) == {item.id for item in made}


class AllAtOnce(RuleBasedStateMachine):
    """What one thread does is checked against a model, while two others list and read all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.guard = guard_in(Path(self.folder.name), vae_guard_keep=2)
        self.latest: list[Kept] = []
        self.files: set[str] = set()
        self.over, self.problems = threading.Event(), list[Exception]()
        self.readers = [threading.Thread(target=self.read) for _ in range(2)]
        for reader in self.readers:
            reader.start()

    def read(self) -> None:
        while not self.over.is_set():
            try:
                listed_once(self.guard)
                self.guard.kept.unfinished()
            except Exception as error:
                self.problems.append(error)

    @rule(decoded=st.booleans())
    def generate(self, decoded: bool) -> None:
        made = batch(self.guard, decoded=decoded)
        self.latest = [made, *self.latest[:1]]
        if not decoded:
            self.files.add(made.id)

    @rule(place=st.integers(0, 5))
    def remove(self, place: int) -> None:
        for item in self.guard.kept.items()[place : place + 1]:
            self.guard.kept.remove(self.guard.kept.item(item.id))
            self.latest = [other for other in self.latest if other is not item]
            self.files.discard(item.id)

    @rule(place=st.integers(0, 5))
    def finish(self, place: int) -> None:
        for item in self.guard.kept.unfinished()[place : place + 1]:
            self.guard.kept.settle(item)
            self.files.discard(item.id)

    @rule(place=st.integers(0, 5))
    def remove_by_hand(self, place: int) -> None:
        for item in self.guard.kept.unfinished()[place : place + 1]:
            assert item.path is not None
            item.path.unlink()
            self.files.discard(item.id)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert listed_once(self.guard) == {item.id for item in self.latest} | self.files
        assert {item.id for item in self.guard.kept.unfinished()} == self.files
        assert not self.problems

    def teardown(self) -> None:
        self.over.set()
        for reader in self.readers:
            reader.join()
        self.folder.cleanup()


TestAllAtOnce = pytest.mark.slow(AllAtOnce.TestCase)
TestAllAtOnce.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


def test_ids_are_each_batchs_own_those_of_earlier_runs_too(tmp_path: Path) -> None:
    before = guard_in(tmp_path)
    for _ in range(3):
        batch(before, decoded=False)
    after = guard_in(tmp_path)
    after.kept.restore()
    batch(after, decoded=False)
    assert len(listed_once(after)) == 4
