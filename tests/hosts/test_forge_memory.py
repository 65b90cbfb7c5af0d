"""What the memory manager of Forge and its kin is asked for, with stand-ins for it and for its VAE object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vae_lib.engine import Operation
from vae_lib.hosts import forge_memory

PLAIN = {Operation.DECODE: 2178, Operation.ENCODE: 1767}
SHAPE = (2, 4, 64, 64)


class Owner:
    """The VAE object: asks before it decodes or encodes."""

    vae_dtype = torch.float32
    patcher = object()

    def __init__(self, management: Any) -> None:
        self.management = management
        self.memory_used_decode: Any = lambda shape, dtype: PLAIN[Operation.DECODE] * shape[2] * shape[3]
        self.memory_used_encode: Any = lambda shape, dtype: PLAIN[Operation.ENCODE] * shape[2] * shape[3]

    def decode(self, shape: tuple[int, ...]) -> None:
        needed = self.memory_used_decode(shape, self.vae_dtype)
        self.management.load_models_gpu([self.patcher], memory_required=needed)


@pytest.fixture
def management() -> Any:
    asked: list[float] = []
    return SimpleNamespace(
        VAE_ALWAYS_TILED=True,
        asked=asked,
        load_models_gpu=lambda models, memory_required: asked.append(memory_required),
    )


def need(operation: Operation, shape: tuple[int, ...]) -> int:
    assert shape == SHAPE
    return 1000 if operation is Operation.DECODE else 500


def test_ours_is_asked_for_and_theirs_put_back(management: Any) -> None:
    owner = Owner(management)
    before = owner.memory_used_decode, owner.memory_used_encode
    with forge_memory.reserving(management, owner, need):
        owner.decode(SHAPE)
        assert owner.memory_used_encode(SHAPE, torch.float32) == 500
        assert management.VAE_ALWAYS_TILED is False
    assert management.asked == [1000]
    assert (owner.memory_used_decode, owner.memory_used_encode) == before
    assert management.VAE_ALWAYS_TILED is True
    assert not hasattr(owner, "_vae_guard_own")


def test_when_ours_has_failed_theirs_is_asked_for(management: Any) -> None:
    owner = Owner(management)
    with forge_memory.reserving(management, owner, need):
        owner.decode(SHAPE)
        forge_memory.make_room_for_own(management, owner, Operation.DECODE, SHAPE)
    assert management.asked == [1000, 2178 * 64 * 64]


@pytest.mark.parametrize("error", [True, False])
def test_an_error_leaves_nothing_behind(management: Any, error: bool) -> None:
    owner = Owner(management)
    before = owner.memory_used_decode

    def failing(operation: Operation, shape: tuple[int, ...]) -> int:
        if error:
            raise RuntimeError("no plan")
        return 10**12

    def decode_and_fail() -> None:
        with forge_memory.reserving(management, owner, failing):
            owner.decode(SHAPE)  # what they ask for themselves is the most
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decode_and_fail()
    assert management.asked == [2178 * 64 * 64]
    assert owner.memory_used_decode is before


def test_frames_are_asked_for_as_they_are(management: Any) -> None:
    owner, shape = Owner(management), (1, 16, 9, 64, 64)
    with forge_memory.reserving(management, owner, lambda operation, given: sum(given)):
        owner.decode(shape)
    assert management.asked == [sum(shape)]
