"""Exact single-head attention without the n x n matrix: queries in chunks, keys in blocks where memory asks for it.

The softmax over several key blocks is the running one of Milakov & Gimelshein 2018 (arXiv:1805.02867).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention by PyTorch's fused kernel, which keeps no scores; each (tokens, channels)."""
    q, k, v = (x.view(1, 1, *x.shape) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).view(queries.shape)


def attend(queries: Tensor, blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmax attention of ``queries`` (q, channels) over blocks of (keys, values), each (k, channels)."""
    q = queries * queries.shape[1] ** -0.5
    highest = q.new_full((q.shape[0], 1), -torch.inf, dtype=torch.float32)
    total = torch.zeros_like(highest)
    result = q.new_zeros(q.shape, dtype=torch.float32)
    for keys, values in blocks:
        weights = torch.mm(q, keys.t()).float()
        higher = torch.maximum(highest, weights.amax(1, keepdim=True))
        correction = highest.sub_(higher).exp_()
        weights.sub_(higher).exp_()
        total.mul_(correction).add_(weights.sum(1, keepdim=True))
        result.mul_(correction).add_(torch.mm(weights.to(values.dtype), values))
        highest = higher
        del weights, correction, higher  # before the next block's come
    return result.div_(total).to(queries.dtype)
