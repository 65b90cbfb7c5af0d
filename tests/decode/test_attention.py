"""Attention by blocks is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.decode.helpers import BF16, CPU, FP32, distance
from vae_lib.decode import PeakMemory
from vae_lib.decode.attention import attend, attend_bytes, is_fused


@given(
    queries=st.integers(1, 9),
    keys=st.integers(1, 30),
    channels=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_blocks_make_no_difference(
    queries: int, keys: int, channels: int, cuts: list[int], spread: float
) -> None:
    """Also where a late block holds the highest score by far (spread 30: scores of hundreds)."""
    q, k, v = (torch.randn(n, channels) * s for n, s in ((queries, spread), (keys, spread), (keys, 1)))
    edges = [0, *sorted(min(cut, keys) for cut in cuts), keys]
    spans = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]  # noqa: RUF007
    got = attend(q, ((k[a:b], v[a:b]) for a, b in spans), len(spans) == 1)
    wanted = F.scaled_dot_product_attention(*(t.double()[None] for t in (q, k, v)))[0]
    assert distance(got, wanted) < (1e-3 if spread > 1 else 1e-5)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
def test_memory(dtype: torch.dtype, blocks: int) -> None:
    q, k, v = (torch.randn(n, 32).to(dtype) for n in (20, 120, 120))
    parts = list(zip(k.chunk(blocks), v.chunk(blocks), strict=True))
    with PeakMemory(CPU) as peak:
        result = attend(q, parts, blocks == 1)
    assert result.dtype == dtype
    predicted = attend_bytes(20, 120 // blocks, 32, blocks == 1, CPU, dtype)
    assert peak.bytes <= predicted <= 1.35 * peak.bytes


def test_fused_only_on_cuda_and_for_one_block() -> None:
    cuda = torch.device("cuda")
    assert [is_fused(d, s) for d in (CPU, cuda) for s in (True, False)] == [False, False, True, False]
