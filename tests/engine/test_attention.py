"""Attention by blocks is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.networks.small import BF16, CPU, FP32, distance
from vae_lib.device import PeakMemory
from vae_lib.engine.attention import attend, attend_fused
from vae_lib.planning.cost import CountedMemory


@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 30),
    channels=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_blocks_make_no_difference(queries: int, keys: int, channels: int, cuts: list[int], spread: float) -> None:
    """Also where a late block holds the highest score by far (spread 30: scores of hundreds)."""
    q, k, v = (torch.randn(n, channels) * s for n, s in ((queries, spread), (keys, spread), (keys, 1)))
    edges = [0, *sorted(min(cut, keys) for cut in cuts), keys]
    spans = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]  # noqa: RUF007
    got = attend(q, ((k[a:b], v[a:b]) for a, b in spans))
    wanted = F.scaled_dot_product_attention(*(t.double()[None] for t in (q, k, v)))[0]
    assert distance(got, wanted) < (1e-3 if spread > 1 else 1e-5)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_counted_twin_takes_the_same_memory(dtype: torch.dtype, blocks: int) -> None:
    """But for what PyTorch's own kernels take: there is nothing of it here."""
    q, k, v = (torch.randn(n, 32).to(dtype) for n in (20, 120, 120))
    parts = list(zip(k.chunk(blocks), v.chunk(blocks), strict=True))
    with PeakMemory(CPU) as peak:
        result = attend(q, parts)
    assert result.dtype == dtype
    twin = CountedMemory(CPU, dtype, resident=True)
    sizes = [len(keys) for keys, _ in parts]
    attend(twin.given(20, 32), [(twin.given(n, 32), twin.given(n, 32)) for n in sizes])
    assert twin.meter.peak == peak.bytes


def test_fused_attention_is_attention() -> None:
    q, k, v = (torch.randn(n, 8) for n in (5, 9, 9))
    assert distance(attend_fused(q, k, v), attend(q, [(k, v)])) < 1e-6
