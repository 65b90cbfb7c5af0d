"""1x1 convolutions, as matrix products on the pixels of a band."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vae_lib.engine.buffers import Memory


def tokens(band: Tensor) -> Tensor:
    """(1, channels, rows, width), channels last, as (rows * width, channels)."""
    return band.permute(0, 2, 3, 1).view(-1, band.shape[1])


class Pointwise(NamedTuple):
    """The weights of a 1x1 convolution, (out, in, 1, 1) and (out,), that is a module's part."""

    weight: Tensor
    bias: Tensor | None


class Linear:
    """A 1x1 convolution, as a matrix product on the pixels of a band.

    Attributes:
        offset: what is still to be added to the result, (channels,) float32, or None. With ``given_offset``, which is
            still to be added to the input, it is that much of the result, and the bias.
    """

    def __init__(self, module: nn.Conv2d | Pointwise, memory: Memory, given_offset: Tensor | None = None) -> None:
        weight = memory.parameter(module.weight)
        self.out_channels, in_channels = weight.shape[:2]
        matrix = weight.view(self.out_channels, in_channels)
        self._weight = matrix.t()
        self._bias = None if module.bias is None else memory.parameter(module.bias)
        self.offset: Tensor | None = None
        if given_offset is not None:
            self.offset = torch.mv(matrix.float(), given_offset.float())
            if self._bias is not None:
                self.offset, self._bias = self.offset.add_(self._bias), None

    def into(self, out: Tensor, rows: Tensor) -> None:
        """The band ``out`` becomes the result for the band ``rows``."""
        pixels, result = tokens(rows), tokens(out)
        if self._bias is None:
            torch.mm(pixels, self._weight, out=result)
        else:
            torch.addmm(self._bias, pixels, self._weight, out=result)

    def add_to(self, out: Tensor, rows: Tensor) -> None:
        """To the band ``out`` the result for the band ``rows`` is added."""
        result = tokens(out)
        torch.addmm(result, tokens(rows), self._weight, out=result)
        if self._bias is not None:
            result.add_(self._bias)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, channels) to (n, out channels)."""
        if self._bias is None:
            return torch.mm(pixels, self._weight)
        return torch.addmm(self._bias, pixels, self._weight)
