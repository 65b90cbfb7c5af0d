"""A GPU's way on machines without one: CUDA's kernels imitated on the CPU, and without numbers on the meta device.

What is imitated is how PyTorch's operations answer; the engine's code is the one that a GPU runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vae_lib.device import kernels, kinds
from vae_lib.engine import attention as module
from vae_lib.planning.counted import Counted
from vae_lib.planning.plan import cost_of

META = torch.device("meta")


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    assert x.is_contiguous(memory_format=torch.channels_last)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    return mean.float(), (variance + eps).rsqrt().float()


def _gather(
    x: Tensor, mean: Tensor, inverse: Tensor, _: None, __: None, momentum: float, eps: float, counts: Tensor
) -> tuple[Tensor, Tensor]:
    weights = (counts / counts.sum())[:, None].double()
    centre = (mean.double() * weights).sum(0)
    spread = inverse.double() ** -2 - eps + (mean.double() - centre) ** 2
    return centre.float(), ((spread * weights).sum(0) + eps).rsqrt().float()


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float, *, out: Tensor
) -> Tensor:
    for tensor in (x, out):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    w, b, m, i = (t.float().view(1, -1, 1, 1) for t in (weight, bias, mean, inverse))
    return out.copy_((x.float() - m) * i * w + b)


def _meta_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return tuple(x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))  # type: ignore[return-value]


def _meta_gather(x: Tensor, mean: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return mean.new_empty(mean.shape[1]), mean.new_empty(mean.shape[1])


_libraries = [torch.library.Library("aten", "IMPL", key) for key in ("CPU", "Meta")]
for _library, _kernels in zip(
    _libraries, ((_stats, _gather, _normalise), (_meta_stats, _meta_gather, lambda *_, out: out)), strict=True
):
    _names = ("batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt.out")
    for _name, _kernel in zip(_names, _kernels, strict=True):
        _library.impl(_name, _kernel)


def _attend_nowhere(queries: Any, keys: Any, values: Any) -> Any:
    """As CUDA's fused kernel: one operation, and nothing kept but the result."""
    if isinstance(queries, Counted):
        return _attend(queries, keys, values)
    q, _, _ = (x.view(1, 1, *x.shape) for x in (queries, keys, values))
    return torch.empty_like(q).view(queries.shape)


_attend, _conv2d = module.attend_fused, F.conv2d


def _convolve_nowhere(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = (0, 0), *groups: Any
) -> Any:
    """As cuDNN's, channels last in and out; the meta device's own may put them first."""
    if isinstance(x, Counted):
        return _conv2d(x, weight, bias, stride, padding)
    if x.device != META or groups:  # a plain network's
        return _conv2d(x, weight, bias, stride, padding, *groups)
    for tensor in (x, weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    sides = (
        (side + 2 * pad - kernel) // stride + 1
        for side, pad, kernel in zip(x.shape[2:], padding, weight.shape[2:], strict=True)
    )
    shape = (len(x), len(weight), *sides)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@contextmanager
def as_on_a_gpu(*devices: str) -> Iterator[None]:
    """On devices of these types, PyTorch has the kernels of a GPU."""
    gpu, is_here = kinds.KNOWN["cuda"], kernels._is_here
    with pytest.MonkeyPatch.context() as patch:
        for name in devices:
            kind = replace(kinds.of(torch.device(name)), kernels=gpu.kernels, fuses_attention=True)
            patch.setitem(kinds.KNOWN, name, kind)
        # what is not here has the kernels that are usual for its kind
        patch.setattr(kernels, "_is_here", lambda device: device.type not in devices and is_here(device))
        if "meta" in devices:
            patch.setattr(module, "attend_fused", _attend_nowhere)
            patch.setattr(F, "conv2d", _convolve_nowhere)
        _forget()
        yield
    _forget()


def _forget() -> None:
    for known in (kernels._found, kernels._fused, cost_of):
        known.cache_clear()


class Dispatches(TorchDispatchMode):
    """Counts the operations that PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.names: dict[str, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        self.names[str(function)] = self.names.get(str(function), 0) + 1
        return function(*args, **(kwargs or {}))
