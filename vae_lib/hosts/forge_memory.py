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
from vae_lib.guard import frames
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
            if len(shape) == 5 and shape[2] > 1:  # a video's
                return hosts_own
            try:
                ours = need(operation, (*shape[:2], *shape[-2:]))
            except Exception:  # the decode will fail of the same, and then say so
                return hosts_own
            return max(1, min(ours, hosts_own))  # never none at all: the host divides by it

        return memory_used

    try:
        management.VAE_ALWAYS_TILED = False
        for operation, name in _ASKED_BY.items():
            setattr(owner, name, asking(operation))
        owner._vae_guard_own, owner._vae_guard_tiled = own, tiled
        yield
    finally:
        management.VAE_ALWAYS_TILED = tiled
        for operation, name in _ASKED_BY.items():
            setattr(owner, name, own[operation])
        del owner._vae_guard_own, owner._vae_guard_tiled


def make_room_for_own(management: Any, owner: Any, operation: Operation, shape: tuple[int, ...]) -> None:
    """Inside ``reserving``: ask for what the plain network takes after all."""
    if len(shape) == 4 and getattr(owner, "is_wan", False):  # its network is two-dimensional, the owner's sum is not
        shape = (*shape[:2], 1, *shape[2:])
    needed = owner._vae_guard_own[operation](shape, owner.vae_dtype)
    management.load_models_gpu([owner.patcher], memory_required=needed)


def guarded(management: Any, points: Points, original: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the VAE object, wrapped. A video is decoded as the host's settings say, in its tiles as well."""

    def method(self: Any, given: Tensor, *args: Any, **kwargs: Any) -> Any:
        with points.guarding(self):
            ours = management.VAE_ALWAYS_TILED
            if _is_video(self, given):
                management.VAE_ALWAYS_TILED = getattr(self, "_vae_guard_tiled", ours)
            try:
                return original(self, given, *args, **kwargs)
            finally:
                management.VAE_ALWAYS_TILED = ours

    return method


def _is_video(owner: Any, given: Tensor) -> bool:
    """Latents (B, C, T, h, w), or pictures (T, H, W, 3) of which such a VAE makes one latent of the first four."""
    return frames.is_video(given) or (getattr(owner, "is_wan", False) and given.ndim == 4 and len(given) > 4)
