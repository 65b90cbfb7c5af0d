"""A short run of the fuzzer, the same each time; ``python -m tools.fuzz`` goes further."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tools import fuzz


@pytest.mark.slow
def test_two_hundred_mutations_of_the_corpus(tmp_path: Path) -> None:
    fuzzer = fuzz.Fuzzer(tmp_path, tmp_path / "it ran")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzz.run(fuzzer, lambda: fuzzer.tried < 200)
    assert not fuzzer.crashes, fuzzer.report()
    assert len(fuzzer.outcomes) > 10


def test_a_failure_is_kept_with_its_input(tmp_path: Path) -> None:
    fuzzer = fuzz.Fuzzer(tmp_path, tmp_path / "it ran")
    (tmp_path / "it ran").touch()
    fuzzer.try_one(b"harmless")
    ((saved, said),) = fuzzer.crashes.items()
    assert saved.read_bytes() == b"harmless"
    assert said.endswith("its code ran")
