"""Every error text that users posted is judged right, alone and wrapped in another error."""

from __future__ import annotations

import builtins
import errno
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from vae_lib.device.failures import Answer, Failure, answer, is_out_of_memory, judge
from vae_lib.errors import Cancelled, PlanError

OUT = torch.cuda.OutOfMemoryError("CUDA out of memory.")
# Kind, where it was posted (GitHub's owner/repository#number), type, text (long ones are cut).
ROWS = json.loads(Path(__file__).with_name("failure_texts.json").read_text(encoding="utf-8"))


def error_of(error_type: str, text: str) -> Exception:
    if error_type == "torch.AcceleratorError":  # since PyTorch 2.8
        return getattr(torch, "AcceleratorError", RuntimeError)(text)
    if error_type == "torch.OutOfMemoryError":
        return torch.cuda.OutOfMemoryError(text)
    return getattr(builtins, error_type)(text)


def first_of(kind: Failure) -> Exception:
    return next(error_of(*row[2:]) for row in ROWS if row[0] == kind.name)


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[1]} {row[3][:30]}" for row in ROWS])
def test_as_it_was_posted(row: list[str]) -> None:
    kind, _, *error = row
    assert judge(error_of(*error)).name == kind
    assert is_out_of_memory(error_of(*error)) is (kind == "OUT_OF_MEMORY")


def test_the_table_is_large_and_has_every_kind() -> None:
    assert len({tuple(error) for _, _, *error in ROWS}) == len(ROWS) >= 60
    counts = Counter(kind for kind, *_ in ROWS)
    assert counts.keys() == set(Failure.__members__)
    assert min(counts.values()) >= 6


@pytest.mark.parametrize("kind", [Failure.DEVICE_LOST, Failure.OUT_OF_MEMORY, Failure.MAYBE_OUT_OF_MEMORY])
def test_wrapped(kind: Failure) -> None:
    caused = ValueError("the decode failed")
    caused.__cause__ = first_of(kind)
    assert judge(caused) is kind
    during = KeyError("a tensor")
    during.__context__ = caused
    assert judge(during) is kind
    during.__suppress_context__ = True  # raised "from None": what was before does not matter
    assert judge(during) is Failure.OTHER


def test_of_several_the_gravest_decides() -> None:
    engine = RuntimeError("GET was unable to find an engine to execute this computation")
    engine.__context__ = OUT
    assert judge(engine) is Failure.OUT_OF_MEMORY
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    lost.__context__ = engine
    assert judge(lost) is Failure.DEVICE_LOST


def test_errors_that_lead_to_each_other_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__cause__ = second, first
    assert judge(first) is Failure.OTHER
    first.__context__ = None
    second.__cause__, first.__context__ = first, OUT
    assert judge(second) is Failure.OUT_OF_MEMORY


def test_what_was_handled_before_the_work_began_says_nothing_of_it() -> None:
    """A host that retries within ``except OutOfMemoryError`` links that error to all that follow."""
    judged: list[Failure] = []

    def work(error: Exception) -> None:
        handled = sys.exc_info()[1]
        try:
            raise error
        except Exception as caught:
            judged.extend([judge(caught), judge(caught, handled)])

    try:
        raise OUT
    except RuntimeError:
        work(ValueError("a bug"))
        work(MemoryError())
    assert judged == [Failure.OUT_OF_MEMORY, Failure.OTHER, Failure.OUT_OF_MEMORY, Failure.OUT_OF_MEMORY]


@pytest.mark.parametrize("own", [Cancelled("Stopped."), PlanError("Nothing fits."), KeyboardInterrupt()])
def test_our_own_sentences_and_interrupts_mean_what_they_say(own: BaseException) -> None:
    own.__context__ = OUT
    assert judge(own) is Failure.OTHER


def test_other_types() -> None:
    assert judge(MemoryError()) is Failure.OUT_OF_MEMORY
    assert judge(OSError(errno.ENOMEM, "Cannot allocate memory")) is Failure.OUT_OF_MEMORY
    assert judge(OSError(errno.ENOSPC, "No space left on device")) is Failure.OTHER
    assert judge(ValueError("out of memory")) is Failure.OTHER
    assert judge(AssertionError("Torch not compiled with CUDA enabled")) is Failure.OTHER


def test_the_allocators_of_this_machine() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55)
    assert is_out_of_memory(error.value)
    for wrong in (lambda: torch.ones(2, 3) @ torch.ones(2, 3), lambda: torch.empty(-1)):
        with pytest.raises(RuntimeError) as error:
            wrong()
        assert judge(error.value) is Failure.OTHER


@pytest.mark.parametrize(
    ("failure", "repeated", "has_cache", "wanted"),
    [
        (Failure.OUT_OF_MEMORY, False, True, Answer.SAME_PLAN),
        (Failure.OUT_OF_MEMORY, True, True, Answer.SMALLER_PLAN),
        (Failure.OUT_OF_MEMORY, False, False, Answer.SMALLER_PLAN),
        (Failure.MAYBE_OUT_OF_MEMORY, False, True, Answer.SMALLER_PLAN),
        (Failure.MAYBE_OUT_OF_MEMORY, True, True, Answer.HAND_OVER),
        (Failure.DEVICE_LOST, False, True, Answer.GIVE_UP),
        (Failure.OTHER, False, True, Answer.HAND_OVER),
    ],
)
def test_what_comes_next(failure: Failure, repeated: bool, has_cache: bool, wanted: Answer) -> None:
    assert answer(failure, repeated, has_cache) is wanted
