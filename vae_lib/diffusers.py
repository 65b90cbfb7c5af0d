"""Any diffusers pipeline in one line: its VAE decodes and encodes exactly, in what memory is free.

    from vae_lib.diffusers import guard
    guard(pipe)  # or guard(pipe.vae); unguard(pipe) undoes it

``_decode`` and ``_encode`` of the instance are replaced (diffusers 0.31 and later). They see the whole picture even
when tiling is on, and lie inside accelerate's hooks. Slicing, scaling, ``return_dict`` and the sampling of the
posterior stay diffusers' own; what VAE Guard cannot do goes on to diffusers' own methods, and that is logged once.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import free_memory
from vae_lib.engine import Compute, Operation
from vae_lib.errors import DeviceLost, PlanError, VAEGuardError
from vae_lib.guard import borrow, frames, layers
from vae_lib.guard.forward import without_autocast
from vae_lib.latents import VAELatents
from vae_lib.planning import PROFILES, Planner, Route
from vae_lib.planning.route import EXACT
from vae_lib.units import size_text

log = logging.getLogger("vae_guard")
CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderKLWan")
_GUARD = "_vae_guard"
# The halves with the 1x1 convolutions that these methods run as well.
_PARTS = {Operation.DECODE: ("decoder.", "post_quant_conv."), Operation.ENCODE: ("encoder.", "quant_conv.")}
# Hooks of diffusers that put another forward in a layer's place and only bring its weights.
_BRINGS = {
    "group_offloading",
    "layerwise_casting",
    "lazy_prefetch_group_offloading",
    "layer_execution_tracker",
}


_USUAL = {"eps": 1e-6, "output_scale_factor": 1.0, "rescale_output_factor": 1.0}  # attributes of layers


class Aside(VAEGuardError):
    """Why a call is left to diffusers; no failure."""


@dataclass(eq=False)
class Guarded:
    """The guard of one VAE.

    Attributes:
        routes: those allowed, the preferred first.
        memory: bytes that may be allocated at most; None: what is free.
        on_event: given a sentence for each picture that came by another route than in full, and once for each reason
            why diffusers' own method was used. They are logged as well ("vae_guard").
        outcome: what the last call did, without its numbers; None where diffusers' own method was used.
    """

    routes: Sequence[Route]
    memory: int | None = None
    on_event: Callable[[str], None] | None = None
    outcome: Outcome | None = None
    _said: set[str] = field(default_factory=set)

    def __deepcopy__(self, memo: Any) -> Guarded:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()  # a file has nothing of it

    def say(self, text: str, *, once: bool = False) -> None:
        if once and text in self._said:
            return
        if once:
            self._said.add(text)
        log.warning("%s", text)
        if self.on_event is not None:
            try:
                self.on_event(text)
            except Exception:  # the picture is there
                log.exception("on_event failed")

    def planner(self) -> Planner:
        planner = Planner(free_memory, PROFILES)
        return planner if self.memory is None else planner.within(self.memory)


def guard(
    target: Any,
    *,
    routes: str | Sequence[Route | str] = EXACT,
    memory: int | None = None,
    on_event: Callable[[str], None] | None = None,
) -> Guarded:
    """Have the VAE of a pipeline, or a VAE, decode and encode by VAE Guard, on its own weights and without a copy.

    Args:
        target: a pipeline, or a VAE of one of ``CLASSES``.
        routes: "full", "tiled", "offload" and "cpu", the preferred first.
        memory, on_event: as ``Guarded`` has them.

    Raises:
        TypeError: when it has no VAE that we have a network for.
        ValueError: when a route is none, or is approximate, or the memory is no number of bytes.
    """
    exact = {route.value: route for route in EXACT}
    asked = [getattr(route, "value", route) for route in ([routes] if isinstance(routes, str) else routes)]
    if not asked or not exact.keys() >= set(asked):
        raise ValueError(f"routes are some of {', '.join(exact)}; {', '.join(map(str, asked)) or 'none'} was given.")
    if memory is not None and (type(memory) is not int or memory <= 0):
        raise ValueError(f"memory is a number of bytes, such as 4_000_000_000; {memory!r} was given.")
    vae = _vae_of(target)
    unguard(vae)
    for name in ("_decode", "_encode"):
        _check_method(vae, name)
    guarded = Guarded([exact[route] for route in asked], memory, on_event)
    object.__setattr__(vae, _GUARD, guarded)  # no submodule
    object.__setattr__(vae, "_decode", types.MethodType(_decode, vae))
    object.__setattr__(vae, "_encode", types.MethodType(_encode, vae))
    return guarded


def unguard(target: Any) -> None:
    """Undo ``guard``; a VAE that is not guarded stays as it is."""
    vae = _vae_of(target)
    for name, ours in (("_decode", _decode), ("_encode", _encode)):
        if getattr(vars(vae).get(name), "__func__", None) is ours:
            del vae.__dict__[name]
    vae.__dict__.pop(_GUARD, None)


def _check_method(vae: Any, name: str) -> None:
    """Whether it is diffusers' own, which is what ours stands in for."""
    method = getattr(vae, name)
    method = getattr(method, "__func__", method)
    if not str(getattr(method, "__module__", "")).startswith("diffusers."):
        raise TypeError(f"{type(vae).__name__}.{name} was replaced by {layers.origin(method)}; undo that before guard.")


def _vae_of(target: Any) -> Any:
    vae = target if isinstance(target, nn.Module) else getattr(target, "vae", None)
    vae = getattr(vae, "_orig_mod", vae)  # of torch.compile
    kind = type(vae)
    if kind.__name__ not in CLASSES or not kind.__module__.startswith("diffusers."):
        raise TypeError(f"VAE Guard has no network for a {kind.__name__}; it knows {', '.join(CLASSES)}.")
    if not hasattr(kind, "_encode"):
        raise TypeError("This diffusers is too old: VAE Guard needs version 0.31 or later.")
    return vae


def _decode(vae: Any, z: Tensor, return_dict: bool = True) -> Any:
    from diffusers.models.autoencoders.vae import DecoderOutput

    outcome = _outcome(vae, Operation.DECODE, z)
    if outcome is None:
        return type(vae)._decode(vae, z, return_dict=return_dict)
    sample = _as_given(vae, outcome.result, z)
    if z.ndim == 5:  # as diffusers' own for videos
        sample = sample.clamp(-1.0, 1.0)
    return DecoderOutput(sample=sample) if return_dict else (sample,)


def _encode(vae: Any, x: Tensor) -> Any:
    outcome = _outcome(vae, Operation.ENCODE, x)
    if outcome is None:
        return type(vae)._encode(vae, x)
    assert outcome.log_variance is not None
    return _as_given(vae, torch.cat([outcome.result, outcome.log_variance], dim=1), x)  # (B, 2C, h, w)


def _as_given(vae: Any, made: Tensor, x: Tensor) -> Tensor:
    """As the VAE's own method gives it: within autocast in its dtype, though it was computed in the VAE's."""
    one = torch.ones(1, 1, dtype=vae.dtype, device=x.device)
    return frames.with_time(made, x).to(x.device, torch.mm(one, one).dtype)


# A compiled ``vae.decode`` breaks its graph here: which plan is taken depends on what is free.
@torch.compiler.disable  # type: ignore[misc]
def _outcome(vae: Any, operation: Operation, x: Tensor) -> Outcome | None:
    """What our ladder makes of it; None where it is left to diffusers."""
    guarded: Guarded | None = getattr(vae, _GUARD, None)
    if guarded is None:  # a method that someone kept
        return None
    guarded.outcome = None
    try:
        outcome = _run(vae, guarded, operation, x)
    except DeviceLost:
        raise
    except VAEGuardError as reason:
        guarded.say(f"diffusers' own {operation.value} is used: {reason}", once=True)
        return None
    except Exception as error:
        log.exception("VAE Guard failed; please report this.")
        guarded.say(f"diffusers' own {operation.value} is used, because VAE Guard failed: {error}", once=True)
        return None
    guarded.outcome = replace(outcome, result=outcome.result.new_empty(0), log_variance=None)
    if outcome.fell_back:
        made = outcome.result if operation is Operation.DECODE else x
        guarded.say(wording.notice(outcome, operation, made.shape[-1], made.shape[-2]))
    return outcome


def _run(vae: Any, guarded: Guarded, operation: Operation, x: Tensor) -> Outcome:
    half = getattr(vae, operation.half)
    if x.is_meta:
        raise Aside("there are no numbers on the meta device.")
    if frames.is_video(x):
        raise Aside("VAE Guard decodes and encodes single pictures, and this is a video.")
    weights = dict(_weights(vae, _PARTS[operation]))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights.values())):
        raise Aside("gradients are wanted. Call it within torch.no_grad(), or vae.requires_grad_(False) before.")
    _check_config(vae.config)
    _check_half(half, operation.half)
    for part in (name.removesuffix(".") for name in _PARTS[operation]):
        if (module := getattr(vae, part, None)) is not None:
            layers.check(part, module, ("diffusers",), _only_brings)
    padding = layers.padding_of(half, operation.half, ("diffusers",), _only_brings)
    network = borrow.network_of(weights, _PARTS[operation])
    PROFILES.check(network, Compute(x.device, vae.dtype), lambda text: guarded.say(text, once=True))
    ladder = Ladder(
        network,
        device=x.device,
        dtype=vae.dtype,  # knows layerwise casting
        order=guarded.routes,
        planner=guarded.planner(),
        wrap=padding,
    )
    given = frames.without_time(x)

    def run() -> Outcome:
        return ladder.decode(VAELatents(given)) if operation is Operation.DECODE else ladder.encode(given)

    with without_autocast(x.device):
        try:
            return run()
        except PlanError:  # diffusers' own would take more than any plan of ours
            scale = 1 if operation is Operation.DECODE else ladder.downscale
            height, width = (side // scale for side in given.shape[2:])
            least = ladder.planner.smallest(ladder.work(operation, height, width, len(given)), guarded.routes)
            if guarded.memory is None or least is None or least.peak_bytes <= guarded.memory:
                raise
            needed = least.peak_bytes
            guarded.say(
                f"memory={guarded.memory} is too little for every route; the smallest takes {size_text(needed)}."
            )
            ladder.planner = Planner(lambda device: needed, PROFILES)
        return run()


def _check_config(config: Any) -> None:
    """What cannot be seen in the shapes of the weights."""
    if getattr(config, "act_fn", "silu") != "silu":
        raise Aside(f"its activation is {config.act_fn}.")
    if getattr(config, "norm_num_groups", 32) != 32:
        raise Aside(f"its norms have {config.norm_num_groups} groups.")


def _check_half(half: nn.Module, name: str) -> None:
    if any(getattr(layer, "_compiled_call_impl", None) is not None for layer in half.modules()):
        raise Aside(f"its {name} is compiled.")
    for layer in half.modules():
        processor = getattr(layer, "processor", None)
        if processor is not None and not type(processor).__module__.startswith("diffusers."):
            raise Aside(f"its {name} has an attention processor of {type(processor).__module__}.")
        for attribute, usual in _USUAL.items():
            if getattr(layer, attribute, usual) != usual:
                raise Aside(f"a layer of its {name} has {attribute} = {getattr(layer, attribute)}.")


def _weights(vae: nn.Module, parts: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """By diffusers' names, wherever they are."""
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
