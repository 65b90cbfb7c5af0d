"""Which of PyTorch's kernels a device has, looked at once for each device and dtype before anything relies on them."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vae_lib.device import kinds
from vae_lib.device.failures import Failure, is_out_of_memory, judge
from vae_lib.device.kind import Kernels


def prefers_fused_attention(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether the engine lets PyTorch attend: where that keeps no scores, but on CPUs."""
    return of(device, dtype).attention and attention_is_fused(device, dtype, channels)


# So many times a convolution's time its multiplications may take as products, for Winograd's algorithm (four of nine of
# them, and transforms) to win.
WORTH_WINOGRAD = 1.5

SWITCH = "VAE_GUARD_CALIBRATE"

Check = Callable[[torch.device, torch.dtype], bool]


def may_measure() -> bool:
    """Whether this machine's speeds are measured; by the environment, not with VAE_GUARD_CALIBRATE=0."""
    return os.environ.get(SWITCH) != "0"


def of(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The kernels of a device; what is usual there if this machine lacks it, or while it has no memory to look."""
    try:
        return _found(device, dtype)
    except Exception:
        return _kernels(device, dtype, lambda check: True)


@functools.cache
def _found(device: torch.device, dtype: torch.dtype) -> Kernels:
    def have(check: Check) -> bool:
        try:
            return check(device, dtype)
        except Exception as error:
            if is_out_of_memory(error):  # says nothing of the kernel, and nothing is remembered
                raise
            return False

    return _kernels(device, dtype, have if _is_here(device) else lambda check: True)


def _kernels(device: torch.device, dtype: torch.dtype, have: Callable[[Check], bool]) -> Kernels:
    usual, wide = kinds.of(device).kernels, dtype == torch.float32
    norms = usual.norms and have(_norms_are_right)
    return replace(
        usual,
        norms=norms,
        mixes=wide or (usual.mixes and have(_mixing_is_right)),
        bias_apart=usual.bias_apart and norms,
        winograd=usual.winograd and wide and (not may_measure() or have(_products_keep_up)),
    )


def _is_here(device: torch.device) -> bool:
    try:
        torch.empty(1, device=device)
    except Exception as error:  # of many types: not compiled in, no driver, no module of the device's name
        return is_out_of_memory(error)
    return True


def _norms_are_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Against float64, on a small picture with large means, in two bands of different size, in place."""
    rows = torch.linspace(-1, 1, 8 * 6 * 5, dtype=torch.float64).view(1, 6, 5, 8).sin().permute(0, 3, 1, 2)
    rows = (rows + torch.arange(8).view(1, 8, 1, 1) * 10).to(dtype)  # (1, 8, 6, 5)
    variance, mean = torch.var_mean(rows.double(), (0, 2, 3), correction=0)
    there = rows.to(device, copy=True)
    eps = 1e-6
    parts = [torch.batch_norm_stats(part, eps) for part in (there[:, :, :4], there[:, :, 4:])]
    means, inverses = (torch.stack(values) for values in zip(*parts, strict=True))
    counts = torch.tensor([20.0, 10.0], device=device)
    got = torch.batch_norm_gather_stats_with_counts(means, means, inverses, None, None, 0.0, eps, counts)
    wanted = (mean.float(), (variance + eps).rsqrt().float())
    if not all(torch.allclose(g.cpu(), w, rtol=1e-3, atol=1e-4) for g, w in zip(got, wanted, strict=True)):
        return False
    weight, bias = (torch.full((8,), value, dtype=dtype, device=device) for value in (2.0, 0.5))
    torch.batch_norm_elemt(there, weight, bias, *got, eps, out=there)
    exact = (rows.double() - mean.view(1, -1, 1, 1)) * wanted[1].double().view(1, -1, 1, 1) * 2 + 0.5
    return bool(torch.allclose(there.cpu().double(), exact, rtol=2e-2, atol=2e-2))


def _mixing_is_right(device: torch.device, dtype: torch.dtype) -> bool:
    rows, factor = torch.ones(2, 2, dtype=dtype, device=device), torch.full((2,), 2.0, device=device)
    torch.addcmul(factor, rows, factor, out=rows)
    return bool((rows == 4).all())


def _products_keep_up(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrix products are about as fast as PyTorch's convolutions, so that it pays to multiply by them less.

    On most CPUs both are limited by the same units. On an AMD EPYC of Zen 5 oneDNN's convolutions use AVX-512, and
    MKL's products do not: 226 and 98 GFLOP/s.
    """
    channels, side = 128, 48
    picture = torch.ones(1, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    kernel = torch.ones(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    tiles = torch.ones(9, side**2, channels, device=device, dtype=dtype)  # as many multiplications
    weights = torch.ones(9, channels, channels, device=device, dtype=dtype)
    products = torch.empty_like(tiles)
    clock = kinds.of(device).clock
    spent = {"convolution": math.inf, "products": math.inf}
    for _ in range(6):  # by turns; other work on the machine only slows them
        begun = clock()
        F.conv2d(picture, kernel, padding=1)
        between = clock()
        torch.bmm(tiles, weights, out=products)
        spent["convolution"] = min(spent["convolution"], between - begun)
        spent["products"] = min(spent["products"], clock() - between)
    return spent["products"] < WORTH_WINOGRAD * spent["convolution"]


def convolution_copies(device: torch.device, dtype: torch.dtype, channels_last: bool) -> bool:
    """Whether a convolution lays its input and its result out again, in memory of its own, for the kernel it uses.

    cuDNN's kernels for tensor cores (half precision, and float32 as TF32) read channels last, those for plain float32
    channels first. Tested once (27 MiB); where the device is not here, has no memory for that or does not count what it
    gives out, it is as usual.
    """
    if kinds.of(device).in_main_memory:  # which nobody counts
        return False
    try:
        return _copies(device, dtype, channels_last, torch.backends.cudnn.allow_tf32)
    except Exception:
        return _usually_copies(device, dtype, channels_last, torch.backends.cudnn.allow_tf32)


def _usually_copies(device: torch.device, dtype: torch.dtype, channels_last: bool, tf32: bool) -> bool:
    """As seen on an H100."""
    with_tensor_cores = dtype != torch.float32 or tf32
    return kinds.of(device).tensor_cores and channels_last is not with_tensor_cores


@functools.cache
def _copies(device: torch.device, dtype: torch.dtype, channels_last: bool, tf32: bool) -> bool:
    if not _is_here(device) or not _counts(device):
        return _usually_copies(device, dtype, channels_last, tf32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    picture = torch.zeros(1, 128, 96, 96, device=device, dtype=dtype).to(memory_format=layout)
    weight = torch.zeros(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=layout)
    taken: list[int] = []
    with torch.autocast(device.type, enabled=False):
        for _ in range(3):  # the first loads kernels, and another thread may allocate meanwhile
            before = _allocated_ever(device) or 0
            made = F.conv2d(picture, weight, padding=1)
            taken.append((_allocated_ever(device) or 0) - before - made.nbytes)
    return min(taken) > picture.nbytes


def attention_is_fused(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether PyTorch's attention of one head of so many channels keeps no matrix of scores there.

    Tested once. Where the device is not here, it is what is usual there. While it has no memory for the test (50 MiB at
    512 channels), it is not relied on.
    """
    try:
        return _fused(device, dtype, channels)
    except Exception:
        return False


@functools.cache
def _fused(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    if not _is_here(device):
        return kinds.of(device).fuses_attention
    try:
        return not _makes_scores(device, dtype, channels)
    except Exception as error:
        if judge(error) in (Failure.OUT_OF_MEMORY, Failure.MAYBE_OUT_OF_MEMORY):
            raise  # says nothing of the kernel, and nothing is remembered
        return False


def _makes_scores(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """By what is seen of it: an array of tokens x tokens among the results of PyTorch's operations, or, where the
    allocator keeps count, as many bytes within one. There are so many tokens that nothing else is as large.
    """
    tokens = 4 * channels if _counts(device) else channels + 64
    # outside of inference mode, in which an operation that consists of others is not taken apart
    with torch.inference_mode(False), torch.no_grad():
        heads = torch.zeros(1, 1, tokens, channels, device=device, dtype=dtype)
        before = _allocated_ever(device)
        with _Largest() as largest:
            F.scaled_dot_product_attention(heads, heads, heads)
        after = _allocated_ever(device)
    allocated = 0 if before is None or after is None else after - before
    return largest.elements >= tokens**2 or allocated >= tokens**2 * dtype.itemsize


def _counts(device: torch.device) -> bool:
    """Whether the allocator keeps count; CUDA's own (cudaMallocAsync, as with --cuda-malloc) leaves it at zero."""
    something = torch.empty(1, device=device)  # held until it has been looked at
    return bool(_allocated_ever(something.device))


def _allocated_ever(device: torch.device) -> int | None:
    """Bytes that the device's allocator has given out so far, freed or not; None if it does not count."""
    return kinds.of(device).statistics(device).get("allocated_bytes.all.allocated")


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what operations give: ``elements`` of the largest array."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        arrays = (item for item in tree_flatten(result)[0] if isinstance(item, torch.Tensor))
        self.elements = max(self.elements, *(array.numel() for array in arrays), 0)
        return result
