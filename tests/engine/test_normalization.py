"""Statistics gathered in bands are those of the whole picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.engine.gpu import as_on_a_gpu
from tests.networks.small import CPU, distance
from vae_lib.device import kernels, kinds
from vae_lib.device.kind import Kernels
from vae_lib.engine.buffers import Memory, Workspace
from vae_lib.engine.normalization import Statistics, stretch_rows


@pytest.fixture(params=["general", "fused"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """CUDA's kernels are imitated."""
    with as_on_a_gpu("cpu") if request.param == "fused" else nullcontext():
        yield str(request.param)


def band_of(x: Tensor) -> Tensor:
    """(height, width, channels) as (1, channels, height, width), channels last."""
    return x.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)


def statistics_of(x: Tensor, cuts: list[int]) -> Statistics:
    """Gathered in bands between ``cuts``."""
    statistics, workspace = Statistics(), Workspace(Memory(CPU, x.dtype))
    edges = [0, *sorted(cuts), x.shape[0]]
    for first, last in zip(edges, edges[1:], strict=False):  # noqa: RUF007
        if first < last:
            statistics.add(band_of(x[first:last]), workspace)
    return statistics


def normalised(x: Tensor, norm: nn.GroupNorm, cuts: list[int], offset: Tensor | None = None) -> Tensor:
    """(height, width, channels) in float64, by factors of float32."""
    normaliser = statistics_of(x, cuts).normaliser(norm, Memory(CPU, x.dtype), offset)
    factors = (normaliser.mean, normaliser.inverse, normaliser.scale, normaliser.shift)
    mean, inverse, scale, shift = (None if f is None else f.double() for f in factors)
    assert scale is not None
    if mean is not None:
        return (x.double() - mean) * inverse * scale + shift
    return x.double() * scale + shift


def reference(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    groups = x.double().reshape(-1, norm.num_groups, x.shape[2] // norm.num_groups)
    mean, variance = groups.mean((0, 2), keepdim=True), groups.var((0, 2), unbiased=False, keepdim=True)
    out = ((groups - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
    return out * norm.weight.double() + norm.bias.double()


def norm_of(channels: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    return norm


@given(
    height=st.integers(1, 12),
    width=st.integers(2, 9),
    groups=st.sampled_from([1, 4, 8]),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bands_make_no_difference(way: str, height: int, width: int, groups: int, cuts: list[int]) -> None:
    """Means that drift down the picture and from channel to channel: variance between bands and channels counts."""
    x = torch.randn(height, width, 8) + torch.arange(height).view(-1, 1, 1) + 5 * torch.arange(8)
    norm = norm_of(8, groups)
    got = normalised(x, norm, [min(cut, height) for cut in cuts])
    assert (got - reference(x, norm)).abs().max() < 2e-4


def test_a_long_stretch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KNOWN, "cpu", replace(kinds.of(CPU), stretch_elements=64))
    assert stretch_rows(100, 4, 8, CPU) == 2
    assert stretch_rows(100, 400, 8, CPU) == 1
    x, norm = torch.randn(11, 4, 8) * torch.arange(11).view(-1, 1, 1), norm_of(8, 4)
    assert (normalised(x, norm, [3]) - reference(x, norm)).abs().max() < 1e-4


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 1e3])
def test_large_means_and_small_variances(way: str, offset: float, spread: float) -> None:
    """A one-pass E[x^2] - E[x]^2 in float32 would lose all digits here."""
    x, norm = torch.randn(40, 30, 8) * spread + offset, norm_of(8, 4)
    normaliser = statistics_of(x, list(range(7, 40, 7))).normaliser(norm, Memory(CPU, x.dtype))
    scale = normaliser.scale if normaliser.inverse is None else normaliser.scale * normaliser.inverse
    groups = x.double().view(-1, 4, 2)
    wanted = (groups.var((0, 2), unbiased=False) + norm.eps).rsqrt().repeat_interleave(2) * norm.weight.double()
    # The mean of each stretch is rounded to float32, here to a tenth of the spread at worst.
    rtol = 5e-3 if offset > 1e3 * spread else 1e-5
    assert torch.allclose(scale.double(), wanted, rtol=rtol)


@pytest.mark.parametrize("value", [0.0, 1.0, -37.5])
def test_a_constant_picture(way: str, value: float) -> None:
    """No variance at all: only the bias is left, up to the rounding of value * scale + shift in float32."""
    x, norm = torch.full((6, 5, 8), value), norm_of(8, 4)
    assert (normalised(x, norm, [1, 4]) - norm.bias.double()).abs().max() <= 2e-4 * max(1.0, abs(value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(way: str, dtype: torch.dtype) -> None:
    """Sums of squares here are far beyond float16's largest number."""
    x, norm = (torch.randn(64, 64, 8) * 300 + 1000).to(dtype), norm_of(8, 4)
    assert (normalised(x, norm, [20]) - reference(x, norm)).abs().max() < 1e-4


def test_an_offset_counts_as_if_it_had_been_added() -> None:
    x, norm, offset = torch.randn(9, 7, 8), norm_of(8, 4), torch.randn(8) * 3
    with as_on_a_gpu("cpu"):
        got = normalised(x, norm, [4], offset)
    assert (got - reference(x + offset, norm)).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mixes", [True, False])
def test_rows_are_normalised_in_place_and_into_windows(
    way: str, dtype: torch.dtype, mixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded once, whatever the kernels; in the inside of a padded window too."""
    monkeypatch.setitem(kinds.KNOWN, "cpu", replace(kinds.of(CPU), stretch_elements=64))
    x, norm = torch.randn(11, 6, 8).to(dtype), norm_of(8, 4)
    if way == "general":
        monkeypatch.setattr(kernels, "of", lambda device, dtype: Kernels(mixes=mixes))
    memory = Memory(CPU, dtype)
    normaliser, wanted = statistics_of(x, [3]).normaliser(norm, memory), reference(x, norm)
    window = torch.zeros(1, 8, 11, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
    normaliser.for_gaps()(window[..., 1:7], band_of(x), Workspace(memory))
    band = band_of(x)
    normaliser(band, band, Workspace(memory))
    for got in (band, window[..., 1:7]):
        error = (got[0].permute(1, 2, 0).double() - wanted).abs().max()
        assert error < 4 * torch.finfo(dtype).eps + 1e-4
    assert float(window[..., 0].abs().sum() + window[..., 7].abs().sum()) == 0


def test_a_norm_without_weights() -> None:
    x, norm = torch.randn(6, 5, 8), nn.GroupNorm(4, 8, affine=False)
    wanted = torch.nn.functional.group_norm(band_of(x), 4)[0].permute(1, 2, 0)
    assert torch.allclose(normalised(x, norm, []).float(), wanted, atol=1e-4)


def test_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on MPS and Arc: nothing is asked for in that type, and it is nearly as exact."""

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            arrays = (item for item in tree_flatten(result)[0] if isinstance(item, Tensor))
            assert all(array.dtype != torch.float64 for array in arrays)
            return result

    monkeypatch.setitem(kinds.KNOWN, "cpu", replace(kinds.of(CPU), float64=False))
    x, norm = torch.randn(40, 9, 8) * 3 + 2, nn.GroupNorm(4, 8).requires_grad_(False)
    with NoDoubles():
        normaliser = statistics_of(x, list(range(7, 40, 7))).normaliser(norm, Memory(CPU, x.dtype))
    assert distance(x * normaliser.scale + normaliser.shift, reference(x, norm)) < 1e-5
