"""The memory manager of Forge and those that share it: models are moved in and out by what a decode says that it needs.

Their VAE object (``forge_objects.vae``) asks for what the plain network takes before each decode and encode, cuts a
batch by that number, and decodes in overlapping tiles when memory runs out, or always if its settings say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vae_lib.engine import Operation
from vae_lib.guard.host import Need, Points

_ASKED_BY = {Operation.DECODE: "memory_used_decode", Operation.ENCODE: "memory_used_encode"}


@contextmanager
def reserving(management: Any, owner: Any, need: Need) -> Iterator[None]:
    """Have a VAE object ask for what we need; what it asked for before is put back.

    Args:
        management: the host's module of that name, whose ``VAE_ALWAYS_TILED`` is off meanwhile.
        owner: the VAE object.
    """
    own = {operation: getattr(owner, name) for operation, name in _ASKED_BY.items()}
    tiled = management.VAE_ALWAYS_TILED

    def asking(operation: Operation) -> Any:
        def memory_used(shape: Any, dtype: torch.dtype) -> float:
            hosts_own = own[operation](shape, dtype)
            try:
                ours = need(operation, tuple(shape))
            except Exception:  # the decode will fail of the same, and then say so
                return hosts_own
            return max(1, min(ours, hosts_own))  # never none at all: the host divides by it

        return memory_used

    try:
        management.VAE_ALWAYS_TILED = False
        for operation, name in _ASKED_BY.items():
            setattr(owner, name, asking(operation))
        owner._vae_guard_own = own
        yield
    finally:
        management.VAE_ALWAYS_TILED = tiled
        for operation, name in _ASKED_BY.items():
            setattr(owner, name, own[operation])
        del owner._vae_guard_own


def make_room_for_own(management: Any, owner: Any, operation: Operation, shape: tuple[int, ...]) -> None:
    """Inside ``reserving``: ask for what the plain network takes after all."""
    needed = owner._vae_guard_own[operation](shape, owner.vae_dtype)
    management.load_models_gpu([owner.patcher], memory_required=needed)


def guarded(points: Points, original: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the VAE object, wrapped."""

    def method(self: Any, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        with points.guarding(self):
            return original(self, given, *args, **kwargs)

    return method
