"""A VAE of diffusers: its ``_decode`` and ``_encode``, in whose place ours stands, and what they must be for that.

Both are replaced on the instance (diffusers 0.31 and later). They see the whole picture even when tiling is on, and
lie inside accelerate's hooks. Slicing, ``return_dict`` and the sampling of the posterior stay diffusers' own.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vae_lib.engine import Operation, Padding
from vae_lib.errors import Aside
from vae_lib.guard import borrow, layers
from vae_lib.guard.seam import Own, StandIn, attribute
from vae_lib.networks import Network

CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderKLWan")
_RUNNER = "_vae_guard"
# Hooks of diffusers that put another forward in a layer's place and only bring its weights.
_BRINGS = {
    "group_offloading",
    "layerwise_casting",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
}
_USUAL = {"eps": 1e-6, "output_scale_factor": 1.0, "rescale_output_factor": 1.0}  # attributes of layers


class Runner(Protocol):
    """What decodes and encodes in the place of a VAE's own methods."""

    def run(self, vae: Any, operation: Operation, x: Tensor) -> Tensor:
        """What ``own`` gives."""


def is_known(vae: Any) -> bool:
    """Whether it is of one of ``CLASSES``, and of a diffusers that has both methods."""
    kind = type(vae)
    return kind.__name__ in CLASSES and kind.__module__.startswith("diffusers.") and hasattr(kind, "_encode")


def own(vae: Any, operation: Operation, x: Tensor) -> Tensor:
    """Diffusers' own picture (B, 3, H, W), or moments (B, 2C, h, w)."""
    return _called(partial(getattr(type(vae), f"_{operation.value}"), vae), operation, x)


def _called(method: Callable[..., Any], operation: Operation, x: Tensor) -> Tensor:
    result: Tensor = method(x, return_dict=False)[0] if operation is Operation.DECODE else method(x)
    return result


def install(vae: Any, runner: Runner) -> None:
    """Have ``runner`` stand in until ``uninstall``.

    As bound methods, so that a copy of the VAE runs on its own weights.
    """
    object.__setattr__(vae, _RUNNER, runner)  # no submodule
    for name, ours in _OURS.items():
        object.__setattr__(vae, name, types.MethodType(ours, vae))


def uninstall(vae: Any) -> None:
    """A VAE in which nothing stands stays as it is."""
    for name, ours in _OURS.items():
        if getattr(vars(vae).get(name), "__func__", None) is ours:
            del vae.__dict__[name]
    vae.__dict__.pop(_RUNNER, None)


def replaced(vae: Any, operation: Operation) -> str:
    """The module of what someone has put in the place of a method of diffusers'; empty where nobody has."""
    method = getattr(vae, f"_{operation.value}")
    method = getattr(method, "__func__", method)
    is_own = str(getattr(method, "__module__", "")).startswith("diffusers.")
    return "" if is_own else layers.origin(method)


def as_given(vae: Any, operation: Operation, made: Tensor, x: Tensor) -> Tensor:
    """As ``own`` gives it: within autocast in its dtype, though it was computed in the VAE's."""
    one = torch.ones(1, 1, dtype=vae.dtype, device=x.device)
    given = made.to(x.device, torch.mm(one, one).dtype)
    is_clamped = operation is Operation.DECODE and x.ndim == 5  # as diffusers' own for videos
    return given.clamp_(-1.0, 1.0) if is_clamped else given


def _decode(vae: Any, z: Tensor, return_dict: bool = True) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    sample = _run(vae, Operation.DECODE, z)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


def _encode(vae: Any, x: Tensor) -> Tensor:
    return _run(vae, Operation.ENCODE, x)


_OURS: dict[str, Callable[..., Any]] = {"_decode": _decode, "_encode": _encode}


def _run(vae: Any, operation: Operation, x: Tensor) -> Tensor:
    runner: Runner | None = getattr(vae, _RUNNER, None)
    return own(vae, operation, x) if runner is None else runner.run(vae, operation, x)  # None: a method was kept


class Methods:
    """Implements ``Seam``."""

    def __init__(self, vae: Any) -> None:
        self.module = vae
        self._replaced: dict[Operation, str] = {}

    def is_supported(self) -> bool:
        return is_known(self.module)

    @contextmanager
    def standing_in(self, stand_in: StandIn) -> Iterator[None]:
        vae = self.module
        calls = {}
        with ExitStack() as stack:
            for operation in Operation:
                name = f"_{operation.value}"
                self._replaced[operation] = replaced(vae, operation)
                calls[operation] = stand_in(operation, partial(_called, getattr(vae, name), operation))
                stack.enter_context(attribute(vae, name, types.MethodType(_OURS[name], vae)))
            stack.enter_context(attribute(vae, _RUNNER, _Here(calls)))
            yield

    def replaced_by(self, operation: Operation) -> str:
        if by := self._replaced.get(operation):
            raise Aside(f"the VAE's _{operation.value} was replaced by {by}.")
        return "The VAE's tiling" if getattr(self.module, "use_tiling", False) else ""

    def padding(self, operation: Operation) -> Padding:
        """
        Raises:
            Aside: when the VAE is not what ours stands in for.
        """
        half: nn.Module = getattr(self.module, operation.half)
        self.weights(operation)
        _check_config(self.module.config)
        _check_half(half, operation.half)
        for part in (name.removesuffix(".") for name in borrow.WHOLE_PARTS[operation]):
            if (module := getattr(self.module, part, None)) is not None:
                layers.check(part, module, ("diffusers",), _only_brings)
        return layers.padding_of(half, operation.half, ("diffusers",), _only_brings)

    def dtype(self, operation: Operation) -> torch.dtype:
        """It knows layerwise casting."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    def weights(self, operation: Operation) -> dict[str, Tensor]:
        """By diffusers' names, wherever they are.

        Raises:
            Aside: when they are not there as numbers.
        """
        return dict(_weights(self.module, borrow.WHOLE_PARTS[operation]))

    def network(self, operation: Operation, video: bool = False) -> Network:
        return borrow.network_of(self.weights(operation), borrow.WHOLE_PARTS[operation], video)

    def latents(self, x: Tensor) -> Tensor:
        return x

    def given(self, operation: Operation, made: Tensor, x: Tensor) -> Tensor:
        return as_given(self.module, operation, made, x)


class _Here:
    """Stands in at one VAE; copies of it, and files, go without."""

    def __init__(self, calls: Mapping[Operation, Own]) -> None:
        self._calls = calls

    def run(self, vae: Any, operation: Operation, x: Tensor) -> Tensor:
        result: Tensor = self._calls[operation](x)
        return result

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


def _check_config(config: Any) -> None:
    """What cannot be seen in the shapes of the weights."""
    if getattr(config, "act_fn", "silu") != "silu":
        raise Aside(f"the VAE's activation is {config.act_fn}.")
    if getattr(config, "norm_num_groups", 32) != 32:
        raise Aside(f"the VAE's norms have {config.norm_num_groups} groups.")


def _check_half(half: nn.Module, name: str) -> None:
    if any(getattr(layer, "_compiled_call_impl", None) is not None for layer in half.modules()):
        raise Aside(f"the VAE's {name} is compiled.")
    for layer in half.modules():
        processor = getattr(layer, "processor", None)
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            raise Aside(f"the VAE's {name} has an attention processor of {type(processor).__module__}.")
        for known, usual in _USUAL.items():
            if getattr(layer, known, usual) != usual:
                raise Aside(f"a layer of the VAE's {name} has {known} = {getattr(layer, known)}.")


def _weights(vae: nn.Module, parts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for path, module in vae.named_modules():
        if not f"{path}.".startswith(tuple(parts)):
            continue
        _check_group(path, module)
        if path.endswith(".to_qkv") and hasattr(vae.get_submodule(path.rpartition(".")[0]), "to_q"):
            continue  # a fused copy
        for name, parameter in module.named_parameters(recurse=False):
            if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
                raise Aside(f"{path}.{name} is quantised.")
            yield f"{path}.{name}", _kept_aside(path, module, name) if parameter.is_meta else parameter


def _check_group(path: str, module: Any) -> None:
    """Weights that group offloading keeps on disk leave uninitialised memory behind, which nothing tells from them."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    if hook is not None and getattr(hook.group, "offload_to_disk_path", None) is not None:
        raise Aside(f"{path} is kept on disk by group offloading.")


def _kept_aside(path: str, module: nn.Module, name: str) -> Tensor:
    """A weight that accelerate's sequential offload keeps in main memory."""
    for hook in _accelerates(module):
        if (weights := getattr(hook, "weights_map", None)) is not None:
            kept: Tensor = weights[name]
            return kept
    raise Aside(f"{path}.{name} is on the meta device, and where its numbers are is not known.")


def _accelerates(module: Any) -> Sequence[Any]:
    hook = getattr(module, "_hf_hook", None)
    several: Sequence[Any] = getattr(hook, "hooks", ())
    return several or ([] if hook is None else [hook])


def _only_brings(layer: Any) -> bool:
    """Whether the forward that a layer was given only brings its weights where they are wanted."""
    registry, hooks = getattr(layer, "_diffusers_hook", None), _accelerates(layer)
    if hooks:
        return all(type(hook).__name__ in ("AlignDevicesHook", "CpuOffload") for hook in hooks)
    return registry is not None and set(registry.hooks) <= _BRINGS
