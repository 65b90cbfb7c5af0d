"""What the convolutions find beyond the picture's edges, for each axis."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from vae_lib.errors import InputError


class Edge(str, Enum):
    """Beyond the two edges of an axis; the values are PyTorch's names (``nn.Conv2d.padding_mode``)."""

    ZEROS = "zeros"
    CIRCULAR = "circular"  # the opposite edge: seamless textures
    REFLECT = "reflect"  # as in a mirror, without the outermost row itself

    def stand_ins(self, size: int, scale: str) -> tuple[int, int] | None:
        """Which of ``size`` rows (or columns) stand for the one before the first and for the one after the last.

        Args:
            scale: of the convolution, as in `ConvShape`. One with a stride pads with zeros whatever the others do. One
                after an upsampling is padded upsampled: each row is there twice, so that what the mirror shows beyond
                the first row's two is the first row again.

        Returns:
            None for zeros.

        Raises:
            InputError: when there is nothing to reflect.
        """
        if self is Edge.ZEROS or scale == "down":
            return None
        if self is Edge.CIRCULAR:
            return size - 1, 0
        if scale == "up":
            return 0, size - 1
        if size < 2:
            raise InputError(
                "This picture is too narrow for convolutions that reflect it at its edges: one of its layers is one "
                "pixel wide or high. Make it larger, or switch reflecting padding off."
            )
        return 1, size - 2


@dataclass(frozen=True)
class Padding:
    """How the convolutions of a network pad their inputs, above and below, and at the left and right."""

    height: Edge = Edge.ZEROS
    width: Edge = Edge.ZEROS

    @classmethod
    def of(cls, both: Padding | Edge | bool) -> Padding:
        """Itself, or the same on both axes; True is for seamless textures."""
        if isinstance(both, Padding):
            return both
        edge = both if isinstance(both, Edge) else Edge.CIRCULAR if both else Edge.ZEROS
        return cls(edge, edge)

    @property
    def is_zeros(self) -> bool:
        return self == ZEROS


ZEROS, SEAMLESS = Padding(), Padding.of(True)
