"""A second device on a machine with one: its tensors say that they are on ``THERE``, and hold real numbers.

As on a GPU, no operation takes tensors of both devices, but for copies and numbers (arrays of no dimension).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

THERE = torch.device("meta")  # which every PyTorch knows; none of its own kernels runs
_COPIES = ("aten._to_copy", "aten.copy_")


class There(Tensor):
    """A tensor on the second device; ``numbers`` are its own, and a view's those of what it looks at."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, device=THERE,
        )  # fmt: skip

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """While this is open, what is made on ``THERE`` has numbers as well."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    given = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
    there = [isinstance(item, There) for item in given if item.dim()]
    copies = str(function).startswith(_COPIES)
    if any(there) and not all(there) and not copies:
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, but found two")
    goes_there = any(there)
    if (device := kwargs.get("device")) is not None:
        goes_there = torch.device(device) == THERE
        kwargs = {**kwargs, "device": torch.device("cpu")} if goes_there else kwargs
    elif copies:
        goes_there = isinstance(args[0], There)
    plain_args, plain_kwargs = tree_map(_numbers, (args, kwargs))
    result = function(*plain_args, **plain_kwargs)
    owners = {id(item.numbers): item for item in given if isinstance(item, There)}  # of what is done in place

    def placed(item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        if id(item) in owners:
            return owners[id(item)]
        return There(item) if goes_there else item

    return tree_map(placed, result)


def _numbers(item: Any) -> Any:
    return item.numbers if isinstance(item, There) else item


def move_half(module: nn.Module) -> None:
    """Every second parameter to ``THERE``, as a host leaves a model that it loaded in part."""
    for number, (name, parameter) in enumerate(list(module.named_parameters())):
        if number % 2:
            owner, _, last = name.rpartition(".")
            moved = nn.Parameter(There(parameter.detach().clone()), requires_grad=False)
            setattr(module.get_submodule(owner), last, moved)
