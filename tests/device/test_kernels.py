"""What a device's kernels are trusted with: only those that give the right numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
import torch.nn.functional as F

from tests.engine import gpu  # noqa: F401 (imitates CUDA's kernels on the CPU)
from tests.networks.small import BF16, CPU, FP16, FP32
from vae_lib.device import kernels, kinds
from vae_lib.engine import Operation, Tiling
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.planning import Work
from vae_lib.planning.plan import WHOLE, cost_of, plain_cost_of


def test_of_the_cpu() -> None:
    assert kernels.of(CPU, FP32) == kernels.Kernels(winograd=True)
    assert not kernels.of(CPU, BF16).winograd


@pytest.mark.parametrize(("products_take", "wins"), [(1.1, True), (2.1, False)])
def test_winograd_where_products_are_as_fast_as_convolutions(
    products_take: float, wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that says how long each took; other work slows the first run."""
    now, slow = 0.0, iter([3.0, 3.0])

    def taking(seconds: float) -> Any:
        def run(*given: Any, **options: Any) -> None:
            nonlocal now
            now += seconds * next(slow, 1.0)

        return run

    monkeypatch.setenv(kernels.SWITCH, "1")
    cpu = replace(kinds.of(CPU), clock=lambda: now)
    monkeypatch.setattr(kinds, "of", lambda device: cpu)
    monkeypatch.setattr(kernels.F, "conv2d", taking(1.0))
    monkeypatch.setattr(torch, "bmm", taking(products_take))
    assert kernels._found.__wrapped__(CPU, FP32).winograd is wins


def test_winograd_is_measured_only_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_products_keep_up", lambda device, dtype: False)
    assert kernels._found.__wrapped__(CPU, FP32).winograd
    monkeypatch.setenv(kernels.SWITCH, "1")
    assert not kernels._found.__wrapped__(CPU, FP32).winograd


def test_of_a_device_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_is_here", lambda device: False)
    found = kernels._found.__wrapped__(torch.device("cuda"), FP16)
    assert found == kernels.Kernels(norms=True, mixes=True, attention=True, bias_apart=True)
    assert kernels._found.__wrapped__(torch.device("mps"), FP16) == kernels.Kernels(attention=True)


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_norms_that_are_right(dtype: torch.dtype) -> None:
    assert kernels._norms_are_right(CPU, dtype)


@pytest.mark.parametrize("broken", ["batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"])
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
    for name in ("_norms_are_right", "_mixing_is_right"):
        check = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda device, dtype, check=check: check(CPU, dtype))
    found = kernels._found.__wrapped__(fake, FP16)
    assert not found.norms
    assert not found.bias_apart


def attention(device: torch.device = CPU, dtype: torch.dtype = FP32, channels: int = 64) -> bool:
    """Looked at anew."""
    kernels._fused.cache_clear()
    try:
        return kernels.attention_is_fused(device, dtype, channels)
    finally:
        kernels._fused.cache_clear()


@contextmanager
def in_the_general_way() -> Iterator[None]:
    """PyTorch's lean kernels switched off."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel([SDPBackend.MATH]):
            yield
    except ImportError:  # PyTorch before 2.3
        with torch.backends.cuda.sdp_kernel(enable_flash=False, enable_mem_efficient=False):
            yield


def test_attention_that_makes_the_scores_is_seen() -> None:
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert attention()  # PyTorch's flash kernel for CPUs
            with in_the_general_way():
                assert not attention()


def test_scores_within_one_operation_are_counted_by_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1, 100, 100 + 256 * 256 * 4 - 1, 1, 100, 100 + 256 * 256 * 4])
    stats = {"memory_stats": lambda device: {"allocated_bytes.all.allocated": next(counts)}}
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(**stats))
    assert [attention(), attention()] == [True, False]


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), 2),
        (RuntimeError("No available kernel. Aborting execution."), 1),
        (ModuleNotFoundError("No module named 'torch.privateuseone'"), 1),
    ],
)
def test_looking_at_the_attention_raises_nothing(
    error: Exception, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is repeated only if there was no memory for it."""
    tries: list[int] = []

    def fail(*_: object) -> NoReturn:
        tries.append(1)
        raise error

    monkeypatch.setattr(F, "scaled_dot_product_attention", fail)
    assert not attention()
    for _ in range(2):
        assert not kernels.attention_is_fused(CPU, FP32, 64)
    kernels._fused.cache_clear()
    assert len(tries) == 1 + wanted


def test_attention_of_devices_that_are_elsewhere() -> None:
    assert attention(torch.device("cuda"))
    for kind in ("xpu", "mps", "privateuseone"):
        assert not attention(torch.device(kind))


def test_our_own_attention_is_preferred_on_cpus() -> None:
    assert not kernels.prefers_fused_attention(CPU, FP32, 64)
    assert kernels.prefers_fused_attention(torch.device("cuda"), FP32, 64)


@pytest.mark.parametrize("kind", ["xpu", "mps", "privateuseone"])
def test_the_scores_that_would_be_made_are_counted_and_split(kind: str) -> None:
    """16,384 tokens: a matrix of 1 GiB in float32."""
    work = Work(AutoencoderKLConfig(), Operation.DECODE, 128, 128, 1, torch.device(kind), FP16)
    scores = 4 * (128 * 128) ** 2
    plain = plain_cost_of(work)
    assert plain.largest_bytes == scores
    assert plain.peak_bytes >= 2 * scores
    whole = cost_of(work, Tiling(WHOLE, attention_bytes=64 << 20))
    assert whole.largest_bytes < scores
    assert whole.peak_bytes < 2 * scores
    assert plain_cost_of(replace(work, device=torch.device("cuda"))).largest_bytes < scores


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
    for name in ("_norms_are_right", "_mixing_is_right"):
        monkeypatch.setattr(kernels, name, check)
    try:
        cuda = torch.device("cuda")
        assert [kernels.of(cuda, FP16).norms for _ in range(4)] == [True, True, False, False]
        assert len(checks) == 4
    finally:
        kernels._found.cache_clear()


class TestLayouts:
    """Whether a convolution lays pictures out anew, seen by what a device's allocator gives out."""

    @pytest.fixture
    def given_out(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """To be filled with what each convolution takes beside its result."""
        extra, total = list[int](), [1]
        convolve = F.conv2d

        def counted(x: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
            made = convolve(x, *args, **options)  # type: ignore[arg-type]
            total[0] += made.nbytes + extra.pop(0)
            return made

        monkeypatch.setattr(F, "conv2d", counted)
        monkeypatch.setattr(kernels, "_allocated_ever", lambda device: total[0])
        kernels._copies.cache_clear()
        yield extra
        kernels._copies.cache_clear()

    def test_seen_by_what_is_taken_each_time(self, given_out: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        there, both = torch.device("meta"), 2 * 128 * 96 * 96 * 4
        monkeypatch.setattr(torch, "autocast", lambda kind, enabled: nullcontext())
        given_out += [1 << 30, 0, both]  # the first loads kernels, and meanwhile another thread allocates
        assert not kernels.convolution_copies(there, FP32, channels_last=True)
        given_out += [both, both, both]
        assert kernels.convolution_copies(there, FP32, channels_last=False)
        assert given_out == []  # and remembered
        assert kernels.convolution_copies(there, FP32, channels_last=False)

    @pytest.mark.parametrize("where", ["elsewhere", "not counted"])
    @pytest.mark.parametrize(
        ("dtype", "tf32", "last"), [(FP16, False, False), (FP32, True, False), (FP32, False, True)]
    )
    def test_where_nothing_is_seen_it_is_as_usual(
        self, where: str, dtype: torch.dtype, tf32: bool, last: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CUDA's own allocator leaves the count at zero."""
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
        if where == "not counted":
            monkeypatch.setattr(kernels, "_is_here", lambda device: True)
            monkeypatch.setattr(torch, "empty", lambda size, device: SimpleNamespace(device=device))
            monkeypatch.setattr(kernels, "_allocated_ever", lambda device: 0)
        kernels._copies.cache_clear()
        for layout in (True, False):
            copies = kernels.convolution_copies(torch.device("cuda"), dtype, channels_last=layout)
            assert copies is (layout is last)
        for kind in ("xpu", "cpu"):
            assert not kernels.convolution_copies(torch.device(kind), dtype, channels_last=last)
        kernels._copies.cache_clear()

    def test_it_is_predicted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MiB that were measured on an H100, of a full decode of 512x512 in float32 without TF32 and with it."""
        work = Work(AutoencoderKLConfig(), Operation.DECODE, 64, 64, 1, torch.device("cuda"), FP32)
        for copies, measured in ((True, 904), (False, 586)):
            monkeypatch.setattr(kernels, "convolution_copies", lambda *_, copies=copies: copies)
            cost_of.cache_clear()
            assert measured <= cost_of(work, Tiling(WHOLE)).peak_bytes / (1 << 20) <= 1.08 * measured
        cost_of.cache_clear()

    @pytest.mark.parametrize(("dtype", "measured"), [(FP16, 610), (FP32, 1218)])
    def test_of_the_plain_network(self, dtype: torch.dtype, measured: int) -> None:
        work = Work(AutoencoderKLConfig(), Operation.DECODE, 64, 64, 1, torch.device("cuda"), dtype)
        assert measured <= plain_cost_of(work).peak_bytes / (1 << 20) <= 1.08 * measured
