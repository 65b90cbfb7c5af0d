"""Any diffusers pipeline in one line: its VAE decodes and encodes exactly, in what memory is free.

    from vae_lib.diffusers import guard
    guard(pipe)  # or guard(pipe.vae); unguard(pipe) undoes it

What VAE Guard cannot do goes on to diffusers' own methods, and that is logged once; ``guard.diffusers_vae`` says in
whose place it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import free_memory
from vae_lib.engine import Compute, Operation
from vae_lib.errors import DeviceLost, PlanError, VAEGuardError
from vae_lib.guard import diffusers_vae, frames
from vae_lib.guard.diffusers_vae import Aside, Methods
from vae_lib.guard.forward import without_autocast
from vae_lib.planning import PROFILES, Planner, Route
from vae_lib.planning.route import EXACT
from vae_lib.units import size_text

log = logging.getLogger("vae_guard")


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

    def run(self, vae: Any, operation: Operation, x: Tensor) -> Tensor:
        """Implements ``diffusers_vae.Runner``."""
        outcome = _outcome(vae, self, operation, x)
        if outcome is None:
            return diffusers_vae.own(vae, operation, x)
        made = outcome.result
        if operation is Operation.ENCODE:
            assert outcome.log_variance is not None
            made = torch.cat([made, outcome.log_variance], dim=1)  # (B, 2C, h, w)
        return diffusers_vae.as_given(vae, operation, made, x)

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
        target: a pipeline, or a VAE of one of ``diffusers_vae.CLASSES``.
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
    for operation in Operation:
        if by := diffusers_vae.replaced(vae, operation):
            raise TypeError(f"{type(vae).__name__}._{operation.value} was replaced by {by}; undo that before guard.")
    guarded = Guarded([exact[route] for route in asked], memory, on_event)
    diffusers_vae.install(vae, guarded)
    return guarded


def unguard(target: Any) -> None:
    """Undo ``guard``; a VAE that is not guarded stays as it is."""
    diffusers_vae.uninstall(_vae_of(target))


def _vae_of(target: Any) -> Any:
    vae = target if isinstance(target, nn.Module) else getattr(target, "vae", None)
    vae = getattr(vae, "_orig_mod", vae)  # of torch.compile
    kind = type(vae)
    if kind.__name__ not in diffusers_vae.CLASSES or not kind.__module__.startswith("diffusers."):
        known = ", ".join(diffusers_vae.CLASSES)
        raise TypeError(f"VAE Guard has no network for a {kind.__name__}; it knows {known}.")
    if not diffusers_vae.is_known(vae):
        raise TypeError("This diffusers is too old: VAE Guard needs version 0.31 or later.")
    return vae


# A compiled ``vae.decode`` breaks its graph here: which plan is taken depends on what is free.
@torch.compiler.disable  # type: ignore[misc]
def _outcome(vae: Any, guarded: Guarded, operation: Operation, x: Tensor) -> Outcome | None:
    """What our ladder makes of it; None where it is left to diffusers."""
    guarded.outcome = None
    try:
        outcome = _run(Methods(vae), guarded, operation, x)
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


def _run(seam: Methods, guarded: Guarded, operation: Operation, x: Tensor) -> Outcome:
    if x.is_meta:
        raise Aside("there are no numbers on the meta device.")
    if frames.is_video(x):
        raise Aside("VAE Guard decodes and encodes single pictures, and this is a video.")
    weights = seam.weights(operation).values()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
        raise Aside("gradients are wanted. Call it within torch.no_grad(), or vae.requires_grad_(False) before.")
    padding, network, dtype = seam.padding(operation), seam.network(operation), seam.dtype(operation)
    PROFILES.check(network, Compute(x.device, dtype), lambda text: guarded.say(text, once=True))
    ladder = Ladder(
        network,
        device=x.device,
        dtype=dtype,
        order=guarded.routes,
        planner=guarded.planner(),
        wrap=padding,
    )
    given = frames.without_time(x)
    run = ladder.decode if operation is Operation.DECODE else ladder.encode
    with without_autocast(x.device):
        try:
            return run(given)
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
        return run(given)
