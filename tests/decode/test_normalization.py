"""Statistics gathered in bands are those of the whole picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.decode.helpers import CPU
from vae_lib.decode import normalization
from vae_lib.decode.buffers import Workspace
from vae_lib.decode.normalization import STRETCH, Statistics, has_fused_statistics, stretch_rows


@pytest.fixture(params=["general", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """CUDA's kernel is imitated."""

    def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        assert x.is_contiguous(memory_format=torch.channels_last)
        variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
        return mean.float(), (variance + eps).rsqrt().float()

    if request.param == "fused":
        monkeypatch.setattr(torch, "batch_norm_stats", batch_norm_stats)
        monkeypatch.setattr(normalization, "has_fused_statistics", lambda device, dtype: True)
    return str(request.param)


def normalised(x: Tensor, norm: nn.GroupNorm, cuts: list[int]) -> Tensor:
    """(height, width, channels), its statistics gathered in bands between ``cuts``."""
    statistics = Statistics()
    edges = [0, *sorted(cuts), x.shape[0]]
    for first, last in zip(edges, edges[1:], strict=False):  # noqa: RUF007
        if first < last:
            statistics.add(x[first:last], Workspace(CPU))
    scale, shift = statistics.affine(norm)
    return x.double() * scale.double() + shift.double()


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
    monkeypatch.setitem(STRETCH, "cpu", 64)
    assert stretch_rows(100, 4, 8, CPU) == 2
    assert stretch_rows(100, 400, 8, CPU) == 1
    x, norm = torch.randn(11, 4, 8) * torch.arange(11).view(-1, 1, 1), norm_of(8, 4)
    assert (normalised(x, norm, [3]) - reference(x, norm)).abs().max() < 1e-4


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 1e3])
def test_large_means_and_small_variances(way: str, offset: float, spread: float) -> None:
    """A one-pass E[x^2] - E[x]^2 in float32 would lose all digits here."""
    x, norm = torch.randn(40, 30, 8) * spread + offset, norm_of(8, 4)
    statistics = Statistics()
    for first in range(0, 40, 7):
        statistics.add(x[first : first + 7], Workspace(CPU))
    scale, _ = statistics.affine(norm)
    groups = x.double().view(-1, 4, 2)
    wanted = (groups.var((0, 2), unbiased=False) + norm.eps).rsqrt().repeat_interleave(
        2
    ) * norm.weight.double()
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


def test_the_fused_kernel_is_used_on_cuda_only_where_it_does_what_it_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not has_fused_statistics(CPU, torch.float32)
    monkeypatch.setattr(normalization, "_is_here", lambda device: True)
    check = has_fused_statistics.__wrapped__
    fake = SimpleNamespace(type="cuda")
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda data, device=None, **options: tensor(data, **options))
    answers: list[tuple[list[float], list[float]]] = [
        ([102.0, -2.0], [0.5, 1e6]), ([102.0, -2.0], [4.0, 0.0]), ([101.9, -2.0], [0.5, 1e6]),
    ]  # fmt: skip
    for (mean, inverse), wanted in zip(answers, (True, False, False), strict=True):
        monkeypatch.setattr(
            torch, "batch_norm_stats", lambda x, eps, m=mean, i=inverse: (tensor(m), tensor(i))
        )
        assert check(fake, torch.float16) is wanted  # type: ignore[arg-type]

    def missing(x: Tensor, eps: float) -> None:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(torch, "batch_norm_stats", missing)
    assert check(fake, torch.float16) is False  # type: ignore[arg-type]


def test_a_norm_without_weights() -> None:
    x, norm = torch.randn(6, 5, 8), nn.GroupNorm(4, 8, affine=False)
    scale, shift = _statistics(x).affine(norm)
    wanted = torch.nn.functional.group_norm(x.permute(2, 0, 1)[None], 4)[0].permute(1, 2, 0)
    assert torch.allclose(x * scale + shift, wanted, atol=1e-4)


def _statistics(x: Tensor) -> Statistics:
    statistics = Statistics()
    statistics.add(x, Workspace(CPU))
    return statistics
