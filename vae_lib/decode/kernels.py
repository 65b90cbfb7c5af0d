"""Which of PyTorch's kernels a device has, looked at once for each device and dtype before anything relies on them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vae_lib.decode.failures import is_out_of_memory


@dataclass(frozen=True)
class Kernels:
    """What is known of a device.

    Attributes:
        norms: the kernels behind PyTorch's SyncBatchNorm: statistics per channel in one reading, their combination, and
            the normalising, of channels-last pictures in any dtype with float32 factors. CUDA has them, and ROCm.
        mixes: ``addcmul`` takes half precision with float32 factors.
        attention: scaled dot product attention of one head of 512 channels without the matrix of scores.
        bias_apart: a convolution adds its bias in another pass over the result, as cuDNN does for channels last; the
            bias is then left to the norm that follows.
        winograd: our own convolution by matrix products is faster than PyTorch's: on a CPU in float32.
    """

    norms: bool = False
    mixes: bool = True
    attention: bool = False
    bias_apart: bool = False
    winograd: bool = False


Check = Callable[[torch.device, torch.dtype], bool]


def of(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The kernels of a device; what is usual there if this machine lacks it, or while it has no memory to look."""
    try:
        return _found(device, dtype)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _kernels(device, dtype, lambda check: True)


@functools.cache
def _found(device: torch.device, dtype: torch.dtype) -> Kernels:
    def have(check: Check) -> bool:
        try:
            return check(device, dtype)
        except (RuntimeError, AssertionError, TypeError, AttributeError) as error:
            if is_out_of_memory(error):  # says nothing of the kernel, and nothing is remembered
                raise
            return False

    return _kernels(device, dtype, have if _is_here(device) else lambda check: True)


def _kernels(device: torch.device, dtype: torch.dtype, have: Callable[[Check], bool]) -> Kernels:
    cuda = device.type == "cuda"
    norms = cuda and have(_norms_are_right)
    return Kernels(
        norms=norms,
        mixes=dtype == torch.float32 or have(_mixing_is_right),
        attention=cuda and have(_attention_is_fused),
        bias_apart=norms,
        winograd=device.type == "cpu" and dtype == torch.float32,
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


def _attention_is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """With PyTorch's general way forbidden there must be another, or it raises."""
    heads = torch.ones(1, 1, 64, 512, device=device, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            only = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
        except ImportError:  # PyTorch before 2.3
            only = torch.backends.cuda.sdp_kernel(enable_math=False)
        with only:
            return bool(torch.isfinite(F.scaled_dot_product_attention(heads, heads, heads)).all())
