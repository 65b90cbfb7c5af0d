"""Group normalisation of a picture that is never seen whole.

Mean and variance are gathered band by band, over every row exactly once: two-pass sums inside a stretch of rows, the
stretches combined in float64 by the update of Chan, Golub & LeVeque (1979). What results is the variance of the whole
image, not a mean of the bands' variances, so normalising any band with it gives the full picture's numbers.

On CUDA a stretch's sums come from the kernel behind PyTorch's SyncBatchNorm (Welford's update in float32), which reads
the rows once; the general way writes and reads a float32 copy of them too.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from vae_lib.decode.buffers import Workspace

# Elements looked at in one go: about what stays in the cache of a CPU core, and enough to fill a GPU.
STRETCH = {"cpu": 1 << 19, "default": 1 << 24}

# Added to a variance before its root is taken; taken off again, it leaves the smallest variances their digits.
TINY = 1e-12


def stretch_rows(rows: int, width: int, channels: int, device: torch.device) -> int:
    """Rows of a band whose statistics are taken at once."""
    limit = STRETCH.get(device.type, STRETCH["default"])
    return min(rows, max(1, limit // (width * channels)))


class Statistics:
    """Running mean and variance per channel of one activation."""

    def __init__(self) -> None:
        # (count, means, sums of squared deviations; or, from the fused kernel, inverse deviations), float32
        self._parts: list[tuple[int, Tensor, Tensor]] = []
        self._fused = False

    def add(self, band: Tensor, workspace: Workspace) -> None:
        """Take in rows (rows, width, channels) that no other call has."""
        rows, width, channels = band.shape
        step = stretch_rows(rows, width, channels, band.device)
        self._fused = has_fused_statistics(band.device, band.dtype)
        for first in range(0, rows, step):
            part = band[first : first + step]
            count = part.shape[0] * width
            if self._fused:
                self._parts.append((count, *torch.batch_norm_stats(part.permute(2, 0, 1).unsqueeze(0), TINY)))
                continue
            mean = part.sum((0, 1), dtype=torch.float32).div_(count)
            deviation = workspace.take("deviation", tuple(part.shape), torch.float32)
            torch.sub(part, mean, out=deviation)
            self._parts.append((count, mean, deviation.square_().sum((0, 1))))

    def affine(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """(scale, shift), each (channels,) float32: normalising is ``x * scale + shift``."""
        device = self._parts[0][1].device
        wide = torch.float64 if device.type != "mps" else torch.float32  # MPS knows no float64
        counts = torch.tensor([count for count, _, _ in self._parts], dtype=wide).unsqueeze(1)
        if device.type == "cuda":  # from pinned memory the copy does not wait for the device
            counts = counts.pin_memory()
        counts = counts.to(device, non_blocking=device.type == "cuda")
        means = torch.stack([mean for _, mean, _ in self._parts]).to(wide)
        squares = torch.stack([squares for _, _, squares in self._parts]).to(wide)
        if self._fused:
            squares = squares.pow(-2).sub_(TINY).mul_(counts)
        total = counts.sum()

        mean = (counts * means).sum(0) / total  # per channel
        square = squares.sum(0) + (counts * (means - mean).square()).sum(0)

        groups = norm.num_groups
        group_mean = mean.view(groups, -1).mean(1, keepdim=True)
        between = (mean.view(groups, -1) - group_mean).square().mean(1, keepdim=True)
        variance = (square.view(groups, -1) / total).mean(1, keepdim=True) + between

        inverse = (variance + norm.eps).rsqrt().expand(groups, mean.numel() // groups).reshape(-1)
        center = group_mean.expand(groups, mean.numel() // groups).reshape(-1)
        scale, shift = inverse, -center * inverse
        if norm.weight is not None:
            weight, bias = norm.weight.detach().to(device, wide), norm.bias.detach().to(device, wide)
            scale, shift = scale * weight, shift * weight + bias
        return scale.float(), shift.float()


def normalise(out: Tensor, rows: Tensor, scale: Tensor, shift: Tensor, workspace: Workspace) -> None:
    """``out`` becomes rows * scale + shift, computed in float32."""
    if mixes_dtypes(out.device, out.dtype):
        torch.addcmul(shift, rows, scale, out=out)
        return
    count, width, channels = rows.shape
    step = stretch_rows(count, width, channels, rows.device)
    for first in range(0, rows.shape[0], step):
        part = rows[first : first + step]
        wide = workspace.take("normalised", tuple(part.shape), torch.float32)
        wide.copy_(part)
        torch.addcmul(shift, wide, scale, out=wide)
        out[first : first + step].copy_(wide)


@functools.cache
def mixes_dtypes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``addcmul`` takes half precision with float32 factors there; not every PyTorch does on every device."""
    if dtype == torch.float32:
        return True
    try:
        rows, factor = torch.ones(2, 2, dtype=dtype, device=device), torch.full((2,), 2.0, device=device)
        torch.addcmul(factor, rows, factor, out=rows)
        return bool((rows == 4).all())
    except (RuntimeError, AssertionError):
        return not _is_here(device)  # predictions for a device of another machine


@functools.cache
def has_fused_statistics(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``torch.batch_norm_stats`` gives means and inverse deviations in float32 there."""
    if device.type != "cuda":
        return False
    try:
        rows = torch.tensor([[100.0, -2.0], [104.0, -2.0]], dtype=dtype, device=device)
        mean, inverse = torch.batch_norm_stats(rows.T.reshape(1, 2, 2, 1), TINY)
        right = torch.tensor([[102.0, -2.0], [0.5, TINY**-0.5]], device=device)
        return bool(torch.allclose(torch.stack([mean, inverse]), right, rtol=1e-4))
    except (RuntimeError, AssertionError):
        return not _is_here(device)  # predictions for a device of another machine


def fused_statistics_bytes(channels: int) -> int:
    """Bytes that ``torch.batch_norm_stats`` allocates: its two results, and up to 128 partial ones."""
    return (2 + 4 * 128) * channels * 4 + 4096


def _is_here(device: torch.device) -> bool:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True
