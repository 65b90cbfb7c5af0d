"""What others have done to the host's layers: how these pad, and whether they still are what we compute.

Extensions change layers of an instance: one-axis tiling gives each convolution a ``_conv_forward`` of its own
(asymmetric-tiling-sd-webui, which many have copied), others wrap ``forward``, hang hooks on it, or put a subclass
in its place. What we do not know we must not decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from vae_lib.engine import Edge, Padding
from vae_lib.errors import VAEGuardError

# What the layers of Forge and of ComfyUI's kin apply to their weights in forward, such as a LoRA.
_APPLIED_TO_WEIGHTS = ("weight_function", "bias_function", "forge_online_loras")


class Altered(VAEGuardError):
    """A layer is not what we compute; the sentence names it, and who changed it."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"The VAE's layer {name} {what}, so VAE Guard does not know what it computes.")


def padding_of(
    half: nn.Module,
    name: str,
    packages: Sequence[str],
    only_brings: Callable[[nn.Module], bool] = lambda layer: False,
) -> Padding:
    """How the convolutions of an encoder or decoder pad. Takes a millisecond.

    Args:
        name: of the half, for the sentence.
        packages: where the host's own layers are defined, beside torch.
        only_brings: whether a ``forward`` that a layer was given only brings its weights.

    Raises:
        Altered: when a layer is not what we compute, or when they do not pad alike.
    """
    found: dict[Padding, str] = {}
    for path, layer in half.named_modules(prefix=name):
        if layer is not half:  # the half itself is called around ours, hooks and all
            check(path, layer, packages, only_brings)
        if isinstance(layer, (nn.Conv2d, nn.Conv3d)) and any(_width(layer)):
            found.setdefault(_padding_of(path, layer), path)
    if len(found) > 1:
        first, second, *_ = found.values()
        raise Altered(second, f"pads differently than {first} does")
    return next(iter(found), Padding())


def check(path: str, layer: nn.Module, packages: Sequence[str], only_brings: Callable[[nn.Module], bool]) -> None:
    kind = type(layer)
    if kind.__module__.partition(".")[0] not in ("torch", *packages):
        raise Altered(path, f"was replaced by a {kind.__name__} of {kind.__module__}")
    replaced = vars(layer).get("forward")
    if replaced is not None and not is_tiling(replaced) and not only_brings(layer):
        raise Altered(path, f"was given another forward by {origin(replaced)}")
    for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
        for hook in hooks.values():
            raise Altered(path, f"has a hook of {origin(hook)}")
    for name in _APPLIED_TO_WEIGHTS:
        if getattr(layer, name, None):
            raise Altered(path, f"has weights that are changed as it computes ({name})")
    if "parametrizations" in layer._modules:
        raise Altered(path, "is parametrized")
    for parameter_name, parameter in layer.named_parameters(recurse=False):
        if type(parameter) is not nn.Parameter or parameter.is_quantized:
            raise Altered(path, f"has a {parameter_name} of the kind {type(parameter).__name__}")


def _padding_of(path: str, conv: nn.Conv2d | nn.Conv3d) -> Padding:
    replaced = vars(conv).get("_conv_forward")
    if isinstance(conv, nn.Conv3d):
        if replaced is not None:
            raise Altered(path, f"was given another _conv_forward by {origin(replaced)}")
        return Padding.of(_edge(path, conv.padding_mode))
    is_own = replaced is None or getattr(replaced, "__func__", None) is nn.Conv2d._conv_forward
    if is_own or not _calls_its_own(conv):
        return Padding.of(_edge(path, conv.padding_mode))
    by_axis = [getattr(conv, f"padding_mode{axis}", None) for axis in "YX"]
    if None in by_axis:
        raise Altered(path, f"was given another _conv_forward by {origin(replaced)}")
    height, width = (_edge(path, "zeros" if mode == "constant" else str(mode)) for mode in by_axis)
    return Padding(height, width)


def _calls_its_own(conv: nn.Conv2d) -> bool:
    """Whether the layer calls the ``_conv_forward`` that the instance was given; Forge's call their class's. Tested on
    a pixel, where the class is not torch's.
    """
    if type(conv).forward is nn.Conv2d.forward:
        return True
    given, called = vars(conv)["_conv_forward"], list[bool]()

    def note(x: Any, *_: Any) -> Any:
        called.append(True)
        return x

    vars(conv)["_conv_forward"] = note
    try:
        with torch.no_grad():
            type(conv).forward(conv, conv.weight.new_zeros(1, conv.in_channels, 2, 2))
    finally:
        vars(conv)["_conv_forward"] = given
    return bool(called)


def _edge(path: str, mode: str) -> Edge:
    try:
        return Edge(mode)
    except ValueError:
        raise Altered(path, f"pads by {mode!r}") from None


def _width(conv: nn.Conv2d | nn.Conv3d) -> Iterator[int]:
    """Rows and columns that it adds; none where it takes what it is given."""
    return iter((1,)) if isinstance(conv.padding, str) else iter(conv.padding)


def is_tiling(replaced: Any) -> bool:
    """Whether a replaced ``forward`` only cuts the picture into tiles, which ours makes needless.

    Tiled VAE (multidiffusion-upscaler-for-automatic1111) puts a ``VAEHook`` in place of the halves' forward; the
    built-in hypertile wraps that of attention.
    """
    return type(replaced).__name__ == "VAEHook" or "hypertile" in getattr(replaced, "__module__", "")


def origin(thing: Any) -> str:
    """The module that a function or an object comes from."""
    inner = getattr(thing, "__wrapped__", thing)
    return str(getattr(inner, "__module__", None) or type(inner).__module__)
