"""What a device's kernels are trusted with: only those that give the right numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.decode import gpu  # noqa: F401 (imitates CUDA's kernels on the CPU)
from tests.decode.helpers import BF16, CPU, FP16, FP32
from vae_lib.decode import kernels


def test_of_the_cpu() -> None:
    assert kernels.of(CPU, FP32) == kernels.Kernels(winograd=True)
    assert not kernels.of(CPU, BF16).winograd


def test_of_a_device_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_is_here", lambda device: False)
    found = kernels._found.__wrapped__(torch.device("cuda"), FP16)
    assert found == kernels.Kernels(norms=True, mixes=True, attention=True, bias_apart=True)
    assert kernels._found.__wrapped__(torch.device("mps"), FP16) == kernels.Kernels()


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_norms_that_are_right(dtype: torch.dtype) -> None:
    assert kernels._norms_are_right(CPU, dtype)


@pytest.mark.parametrize(
    "broken", ["batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"]
)
@pytest.mark.parametrize("how", ["wrong", "missing", "refused"])
def test_norms_that_are_not(broken: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong, that this PyTorch lacks or that refuses the dtype: none of them is used."""
    real = getattr(torch, broken)

    def wrong(*given: Any, **options: Any) -> Any:
        result = real(*given, **options)
        for tensor in result if isinstance(result, tuple) else (result,):
            tensor.add_(0.1)
        return result

    def refused(*given: Any, **options: Any) -> Any:
        raise NotImplementedError("no such kernel for 'Half'")

    if how == "missing":
        monkeypatch.delattr(torch, broken)
    else:
        monkeypatch.setattr(torch, broken, wrong if how == "wrong" else refused)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fake: Any = SimpleNamespace(type="cuda")
    monkeypatch.setattr(kernels, "_is_here", lambda device: True)
    for name in ("_norms_are_right", "_mixing_is_right", "_attention_is_fused"):
        check = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda device, dtype, check=check: check(CPU, dtype))
    found = kernels._found.__wrapped__(fake, FP16)
    assert not found.norms
    assert not found.bias_apart


def test_attention_on_a_cpu_that_keeps_no_scores() -> None:
    """PyTorch's flash kernel for CPUs passes the check, so that the check itself is known to run."""
    assert isinstance(kernels._attention_is_fused(CPU, FP32), bool)


def test_memory_that_is_short_says_nothing_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is usual is relied on meanwhile, and the device is looked at again."""
    checks: list[int] = []

    def check(device: torch.device, dtype: torch.dtype) -> bool:
        checks.append(1)
        if len(checks) < 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return False

    kernels._found.cache_clear()
    monkeypatch.setattr(kernels, "_is_here", lambda device: True)
    for name in ("_norms_are_right", "_mixing_is_right", "_attention_is_fused"):
        monkeypatch.setattr(kernels, name, check)
    try:
        cuda = torch.device("cuda")
        assert [kernels.of(cuda, FP16).norms for _ in range(4)] == [True, True, False, False]
        assert len(checks) == 5
    finally:
        kernels._found.cache_clear()
