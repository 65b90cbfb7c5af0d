"""Exact single-head attention without the n x n matrix: queries in chunks, keys in blocks where memory asks for it.

The softmax over several key blocks is the running one of Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def is_fused(device: torch.device, single: bool) -> bool:
    """Whether PyTorch's fused attention runs: for one block of keys on CUDA, where it takes heads of 512 channels."""
    return single and device.type == "cuda"


def attend(queries: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], single: bool) -> Tensor:
    """Softmax attention of ``queries`` (q, channels) over blocks of (keys, values), each (k, channels).

    ``single`` says that there is just one block.
    """
    if is_fused(queries.device, single):
        ((keys, values),) = blocks
        return F.scaled_dot_product_attention(queries[None, None], keys[None, None], values[None, None])[0, 0]
    q = queries * queries.shape[1] ** -0.5
    highest = torch.full((q.shape[0], 1), -torch.inf, device=q.device)
    total = torch.zeros_like(highest)
    result = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for keys, values in blocks:
        weights = (q @ keys.T).float()
        higher = torch.maximum(highest, weights.amax(1, keepdim=True))
        correction = highest.sub_(higher).exp_()
        weights.sub_(higher).exp_()
        total.mul_(correction).add_(weights.sum(1, keepdim=True))
        result.mul_(correction).add_(weights.to(values.dtype) @ values)
        highest = higher
        del weights  # before the next block's come
    return result.div_(total).to(queries.dtype)


def attend_bytes(
    queries: int, keys: int, channels: int, single: bool, device: torch.device, dtype: torch.dtype
) -> int:
    """Peak bytes that `attend` allocates for blocks of at most ``keys`` keys, its result included."""
    row, size = queries * channels, dtype.itemsize
    if is_fused(device, single):
        return row * (size + 4)  # the kernel accumulates in float32
    score = (
        queries * keys * (4 if size == 4 else 4 + size)
    )  # half precision: once as computed, once in float32
    return row * (2 * size + 4) + score + 5 * queries * 4
