"""What is computed, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch

from vae_lib.engine.padding import ZEROS, Padding

Progress = Callable[[int, int], None]


class Operation(str, Enum):
    """The two things that a VAE does."""

    DECODE = "decode"
    ENCODE = "encode"

    @property
    def doing(self) -> str:
        return "decoding" if self is Operation.DECODE else "encoding"

    @property
    def done(self) -> str:
        return f"{self.value}d"

    @property
    def half(self) -> str:
        """The half of the VAE that does it."""
        return f"{self.value}r"

    @property
    def other_half(self) -> str:
        """The half that does the other, with its article."""
        return "an encoder" if self is Operation.DECODE else "a decoder"


@dataclass(frozen=True)
class Compute:
    """Where a piece of work is computed and how it is watched.

    Attributes:
        device, dtype: where and in which floating-point type to compute.
        padding: what the convolutions find beyond the picture's edges.
        output_device: where the result is to be put, by default ``device``.
        progress: called with (steps done, steps in all).
        cancelled: asked between steps.
    """

    device: torch.device
    dtype: torch.dtype
    padding: Padding = ZEROS
    output_device: torch.device | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None

    @property
    def destination(self) -> torch.device:
        return self.output_device or self.device
