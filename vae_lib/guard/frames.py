"""A network of videos that is asked for one picture: its host gives and takes frames, (B, C, T, h, w).

Wan's halves compute the first frame from nothing but itself; what they know of frames before is in ``feat_cache``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_video(x: Tensor, feat_cache: Any = None) -> bool:
    """Whether these are several frames, or one that others came before."""
    return x.ndim == 5 and (x.shape[2] > 1 or feat_cache is not None)


def without_time(x: Tensor) -> Tensor:
    """(B, C, 1, h, w), or (B, C, h, w), as (B, C, h, w)."""
    return x.squeeze(2) if x.ndim == 5 else x


def with_time(made: Tensor, x: Tensor) -> Tensor:
    """What was made of ``without_time(x)``, with the axis of time if ``x`` has it."""
    return made.unsqueeze(2) if x.ndim == 5 else made


def as_given(half: nn.Module, made: Tensor) -> Tensor | list[Tensor]:
    """As the half's own forward gives it: ComfyUI's decoder of Wan, and Forge Neo's, gives a list of pieces of time."""
    return [made] if hasattr(half, "run_up") else made
