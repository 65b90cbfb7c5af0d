"""Group normalisation of a picture that is never seen whole.

Mean and variance are gathered band by band, over every row exactly once: two-pass sums inside a stretch of rows, the
stretches combined, in float64 where the device has it, by the update of Chan, Golub & LeVeque (1979). What results is
the variance of the whole image, not a mean of the bands' variances, so normalising any band with it gives the full
picture's numbers.

Where PyTorch has the kernels of its SyncBatchNorm (`Kernels.norms`) they do the same in a tenth of the traffic: one
reading of a band (Welford's update in float32), one small kernel that combines bands as if they were processes, and one
that normalises. What a group of channels has in common then comes from products with a small averaging matrix.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.device import kernels, kinds
from vae_lib.device.dtypes import at_least_float32
from vae_lib.engine.buffers import Memory, Workspace, rows_of
from vae_lib.networks import ChannelNorm

# Added to a channel's variance by the fused kernel, and taken off again: what the norms of these networks add.
EPS = 1e-6
# Of a pixel's channels, below which PyTorch's ``normalize`` divides by this instead.
SHORTEST = 1e-12


def stretch_rows(rows: int, width: int, channels: int, device: torch.device) -> int:
    """Rows of a band that are looked at in one go."""
    return min(rows, max(1, kinds.of(device).stretch_elements // (width * channels)))


@dataclass(frozen=True)
class Normaliser:
    """Normalises rows with statistics of the whole picture: ``(x - mean) * inverse * scale + shift``.

    Each is (channels,), float32 but for what comes from the weights. Where ``mean`` is None, ``scale`` and ``shift``
    have it all in them. With ``silu`` that follows, before anything is rounded.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor | None = None
    inverse: Tensor | None = None
    silu: bool = False

    def __call__(self, out: Tensor, rows: Tensor, workspace: Workspace) -> None:
        """``out`` becomes the rows normalised, computed in float32.

        It may be ``rows`` themselves. Where there is a ``mean`` it must be channels last without gaps, as they are.
        """
        if self.mean is not None and self.inverse is not None:
            torch.batch_norm_elemt(rows, self.scale, self.shift, self.mean, self.inverse, EPS, out=out)
            return
        scale, shift = self._of_bands
        if kernels.of(out.device, out.dtype).mixes:
            torch.addcmul(shift, rows, scale, out=out)
            return
        _, channels, count, width = rows.shape
        step = stretch_rows(count, width, channels, rows.device)
        for first in range(0, count, step):
            part = rows_of(rows, first, min(first + step, count))
            wide = workspace.band("normalised", (channels, part.shape[2], width), torch.float32)
            wide.copy_(part)
            torch.addcmul(shift, wide, scale, out=wide)
            if self.silu:
                F.silu(wide, inplace=True)
            rows_of(out, first, first + part.shape[2]).copy_(wide)

    def with_silu(self, device: torch.device, dtype: torch.dtype) -> Normaliser:
        """The same with SiLU, where it goes by float32 in any case; else itself."""
        by_float32 = self.mean is None and not kernels.of(device, dtype).mixes
        return replace(self, silu=True) if by_float32 else self

    @functools.cached_property
    def _of_bands(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (1, channels, 1, 1) each."""
        return self.scale.view(1, -1, 1, 1), self.shift.view(1, -1, 1, 1)

    def for_gaps(self) -> Normaliser:
        """The same for results that have gaps, such as the inside of a padded window."""
        if self.mean is None or self.inverse is None:
            return self
        scale = self.inverse * self.scale
        return Normaliser(scale, self.shift - self.mean * scale)


@dataclass(frozen=True)
class ChannelNormaliser:
    """Divides each pixel by the length of its channels and multiplies with ``scale`` (1, channels, 1, 1), in float32.

    It needs no statistics. With ``silu`` that follows, before anything is rounded.
    """

    scale: Tensor
    silu: bool = False

    @classmethod
    def of(cls, norm: ChannelNorm, memory: Memory) -> ChannelNormaliser:
        gamma = memory.parameter(norm.gamma).to(at_least_float32(memory.dtype))
        return cls((gamma * norm.num_channels**0.5).view(1, norm.num_channels, 1, 1))

    def __call__(self, out: Tensor, rows: Tensor, workspace: Workspace) -> None:
        """``out`` becomes the rows normalised; it may be the rows themselves, and have gaps."""
        _, channels, count, width = rows.shape
        step, by_float32 = count, _goes_by_float32(out.device, out.dtype)
        if by_float32 or kinds.of(out.device).in_main_memory:
            step = stretch_rows(count, width, channels, out.device)
        for stretch in workspace.memory.stretches(count, step):
            part, target = (rows_of(band, stretch.first, stretch.last) for band in (rows, out))
            if not by_float32:
                self._normalise(target, part)
                continue
            wide = workspace.band("normalised", (channels, part.shape[2], width), at_least_float32(out.dtype))
            wide.copy_(part)
            self._normalise(wide, wide)
            if self.silu:
                F.silu(wide, inplace=True)
            target.copy_(wide)

    def _normalise(self, out: Tensor, rows: Tensor) -> None:
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=self.scale.dtype)
        torch.div(rows, length.clamp_(min=SHORTEST), out=out)
        out.mul_(self.scale)

    def with_silu(self, device: torch.device, dtype: torch.dtype) -> ChannelNormaliser:
        """The same with SiLU, where it goes by float32 in any case; else itself."""
        return replace(self, silu=True) if _goes_by_float32(device, dtype) else self

    def for_gaps(self) -> ChannelNormaliser:
        """The same for results that have gaps."""
        return self


def _goes_by_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether what is narrower is copied to be computed with."""
    return dtype != at_least_float32(dtype) and not kernels.of(device, dtype).mixes


class Statistics:
    """Mean and variance per channel of one activation, gathered band by band."""

    def __init__(self) -> None:
        # pixels, means, and sums of squared deviations or (from the fused kernel) inverse deviations, float32
        self._pixels: list[int] = []
        self._means: list[Tensor] = []
        self._spreads: list[Tensor] = []
        self._count = 0  # of parts, with those for which others stand
        self._alike: list[Tensor] = []  # what the twin's further parts would take
        self._fused = False

    def add(self, band: Tensor, workspace: Workspace, repeats: int = 1) -> None:
        """Take in rows (1, channels, rows, width) that no other call has; ``repeats``: as `FeatureMap.append`."""
        _, channels, rows, width = band.shape
        self._fused = kernels.of(band.device, band.dtype).norms
        step = rows if self._fused else stretch_rows(rows, width, channels, band.device)
        for stretch in workspace.memory.stretches(rows, step):
            part = rows_of(band, stretch.first, stretch.last)
            pixels, times = part.shape[2] * width, repeats * stretch.repeats
            found: tuple[Any, Any] = (
                torch.batch_norm_stats(part, EPS) if self._fused else self._part(part, pixels, workspace)
            )
            self._pixels.append(pixels)
            self._means.append(found[0])
            self._spreads.append(found[1])
            self._count += times
            if times > 1:
                self._alike += [array.pile(times - 1) for array in found]

    @staticmethod
    def _part(part: Tensor, count: int, workspace: Workspace) -> tuple[Tensor, Tensor]:
        mean = part.sum((0, 2, 3), dtype=torch.float32).div_(count)
        deviation = workspace.band("deviation", tuple(part.shape[1:]), torch.float32)
        torch.sub(part, mean.view(1, -1, 1, 1), out=deviation)
        return mean, deviation.square_().sum((0, 2, 3))

    def normaliser(self, norm: nn.GroupNorm, memory: Memory, offset: Tensor | None = None) -> Normaliser:
        """For the activation that was taken in, to which ``offset`` (channels,) is still to be added."""
        if self._fused:
            return self._fused_normaliser(norm, memory, offset)
        assert offset is None, "only devices with the fused kernels leave biases for later"
        return self._general_normaliser(norm, memory)

    def _fused_normaliser(self, norm: nn.GroupNorm, memory: Memory, offset: Tensor | None) -> Normaliser:
        mean, inverse = self._means[0], self._spreads[0]
        if self._count > 1:
            counts = self._pixel_counts(memory)
            means, inverses = (memory.stack(a, self._count) for a in (self._means, self._spreads))
            mean, inverse = torch.batch_norm_gather_stats_with_counts(
                means, means, inverses, None, None, 0.0, EPS, counts
            )
        if offset is not None:
            mean = mean + offset
        average = memory.averages(norm.num_channels, norm.num_groups)
        group_mean = torch.mv(average, mean)  # (channels,): each channel has its group's
        mean = mean - group_mean
        spread = inverse.pow(-2).addcmul_(mean, mean)  # variance of the channel and of its mean, and EPS
        variance = torch.mv(average, spread)
        if norm.eps != EPS:
            variance.add_(norm.eps - EPS)
        scale, shift = memory.factors(norm)
        return Normaliser(scale, shift, group_mean if offset is None else group_mean.sub_(offset), variance.rsqrt_())

    def _pixel_counts(self, memory: Memory) -> Tensor:
        """Of the parts; without a copy from the host, which would wait, as long as all but the last are equal."""
        first, *others, last = self._pixels
        if any(pixels != first for pixels in others):
            return memory.numbers(self._pixels, self._count, torch.float32).view(-1)
        counts = memory.full(self._count, float(first))
        if last != first:
            counts.narrow(0, self._count - 1, 1).fill_(float(last))
        return counts

    def _general_normaliser(self, norm: nn.GroupNorm, memory: Memory) -> Normaliser:
        wide = torch.float64 if kinds.of(memory.device).float64 else torch.float32
        counts = memory.numbers(self._pixels, self._count, wide)  # (parts, 1)
        means, squares = (memory.stack(a, self._count).to(wide) for a in (self._means, self._spreads))
        total = sum(self._pixels)

        mean = (means * counts).sum(0).div_(total)  # (channels,)
        square = squares.sum(0) + ((means - mean).square_() * counts).sum(0)

        groups, channels = norm.num_groups, norm.num_channels
        by_group = mean.view(groups, -1)
        group_mean = by_group.mean(1, keepdim=True)
        between = (by_group - group_mean).square_().mean(1, keepdim=True)
        variance = (square.view(groups, -1) / total).mean(1, keepdim=True) + between

        inverse = variance.add_(norm.eps).rsqrt_()  # (groups, 1)
        scale = inverse.expand(groups, channels // groups).reshape(-1)
        shift = (inverse * group_mean).neg_().expand(groups, channels // groups).reshape(-1)
        weight, bias = memory.factors(norm)
        scale, shift = scale * weight, (shift * weight).add_(bias)
        return Normaliser(scale.float(), shift.float())
