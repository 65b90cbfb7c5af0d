"""What PyTorch's functions give, take and do, of arrays that are only counted."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from vae_lib.device import kernels
from vae_lib.planning.counted import RULES, Counted


def _silu(x: Counted, inplace: bool = False) -> Counted:
    return x._in_place() if inplace else x._elementwise()


def _into(*read: Any, out: Counted, **_: Any) -> Counted:
    out.meter.did(out, *read)
    return out


def _conv2d(
    x: Counted,
    weight: Counted,
    bias: Counted | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *_: Any,
) -> Counted:
    stride = stride if isinstance(stride, int) else stride[0]
    pads = (padding, padding) if isinstance(padding, int) else padding
    out_channels, in_channels, *kernel = weight.shape
    batch, channels, *sides = x.shape
    assert channels == in_channels
    rows, columns = ((s + 2 * p - k) // stride + 1 for s, p, k in zip(sides, pads, kernel, strict=True))
    result = x.like((batch, out_channels, rows, columns))
    if x.meter.convolution_copies(x.dtype):
        x.meter.transient(x.nbytes + weight.nbytes + result.nbytes)
    x.meter.did(multiplications=result.numel() * in_channels * kernel[0] * kernel[1])
    return result


def _mm(a: Counted, b: Counted, out: Counted | None = None) -> Counted:
    result = a.like((a.shape[0], b.shape[1])) if out is None else out
    a.meter.did(multiplications=a.shape[0] * a.shape[1] * b.shape[1])
    return result


def _addmm(bias: Counted, a: Counted, b: Counted, out: Counted | None = None) -> Counted:
    return _mm(a, b, out)


def _mv(matrix: Counted, vector: Counted) -> Counted:
    result = vector.like((matrix.shape[0],))
    vector.meter.did(matrix)
    return result


def _bmm(a: Counted, b: Counted, out: Counted) -> Counted:
    a.meter.did(multiplications=math.prod(a.shape) * b.shape[2])
    return out


def _stack(arrays: Any, dim: int = 0) -> Counted:
    arrays = list(arrays)
    shape = arrays[0].shape
    dim %= len(shape) + 1
    result = arrays[0].like((*shape[:dim], len(arrays), *shape[dim:]))
    result.meter.did(result, result)
    return result


def _attention(q: Counted, k: Counted, v: Counted) -> Counted:
    """By the fused kernel, which accumulates in float32, or all in float32 with the scores and their softmax."""
    result, channels = q.like(q.shape), q.shape[-1]
    pairs = q.shape[-2] * k.shape[-2]
    if kernels.attention_is_fused(q.meter.device, q.dtype, channels):
        q.meter.transient(4 * q.numel())
    else:
        q.meter.transient(8 * pairs + 4 * (q.numel() + k.numel() + v.numel()))
        q.meter.largest = max(q.meter.largest, 4 * pairs)
    q.meter.did(multiplications=2 * pairs * channels)
    return result


def _channel_statistics(x: Counted, eps: float) -> tuple[Counted, Counted]:
    """The kernel also takes up to 128 partial results."""
    channels = x.shape[1]
    x.meter.transient((2 + 4 * 128) * channels * 4 + 4096)
    result = x.like((channels,), torch.float32), x.like((channels,), torch.float32)
    x.meter.did(x)
    return result


def _combined_statistics(x: Counted, mean: Counted, *_: Any) -> tuple[Counted, Counted]:
    x.meter.did(mean, mean)
    return x.like((mean.shape[1],)), x.like((mean.shape[1],))


def _normalised(x: Counted, *factors: Any, out: Counted) -> Counted:
    x.meter.did(x, out)
    return out


def _group_norm(x: Counted, groups: int, **_: Any) -> Counted:
    result = x.like(x.shape)
    x.meter.did(x, x, result)
    return result


def _doubled(x: Counted, scale_factor: float, **_: Any) -> Counted:
    result = x.like((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    x.meter.did(x, result)
    return result


def _shuffled(x: Counted, patch: int) -> Counted:
    channels, rows, columns = x.shape[1:]
    result = x.like((x.shape[0], channels // patch**2, patch * rows, patch * columns))
    x.meter.did(x, result)
    return result


def _unshuffled(x: Counted, patch: int) -> Counted:
    channels, rows, columns = x.shape[1:]
    result = x.like((x.shape[0], channels * patch**2, rows // patch, columns // patch))
    x.meter.did(x, result)
    return result


def _averaged(x: Counted, side: int) -> Counted:
    result = x.like((*x.shape[:2], x.shape[2] // side, x.shape[3] // side))
    x.meter.did(x, result)
    return result


def _padded(x: Counted, sides: tuple[int, int, int, int], **_: Any) -> Counted:
    result = x.like((*x.shape[:2], x.shape[2] + sides[2] + sides[3], x.shape[3] + sides[0] + sides[1]))
    x.meter.did(x, result)
    return result


def _length(x: Counted, dim: int, keepdim: bool, dtype: torch.dtype) -> Counted:
    return x.sum(dim, keepdim, dtype)


def _unit(x: Counted, p: float, dim: int, eps: float, out: None) -> Counted:
    """The lengths, and what they are divided by, spread over all channels without a copy."""
    return x / x.sum(dim, True).clamp(0.0, 0.0)


def _zeros_like(x: Counted) -> Counted:
    return x.new_empty(x.shape)


RULES |= {
    F.silu: _silu,
    F.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.interpolate: _doubled,
    F.pad: _padded,
    F.pixel_shuffle: _shuffled,
    F.pixel_unshuffle: _unshuffled,
    F.avg_pool2d: _averaged,
    F.normalize: _unit,
    F.scaled_dot_product_attention: _attention,
    torch.mm: _mm,
    torch.addmm: _addmm,
    torch.mv: _mv,
    torch.bmm: _bmm,
    torch.stack: _stack,
    torch.linalg.vector_norm: _length,
    torch.addcmul: _into,
    torch.add: _into,
    torch.div: _into,
    torch.sub: _into,
    torch.maximum: lambda a, b: a._elementwise(b),
    torch.zeros_like: _zeros_like,
    torch.empty_like: _zeros_like,
    torch.batch_norm_stats: _channel_statistics,
    torch.batch_norm_gather_stats_with_counts: _combined_statistics,
    torch.batch_norm_elemt: _normalised,
}
