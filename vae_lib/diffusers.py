"""Any diffusers pipeline in one line: its VAE decodes and encodes exactly, in what memory is free.

    from vae_lib.diffusers import guard
    guard(pipe)  # or guard(pipe.vae); unguard(pipe) undoes it

What VAE Guard cannot do goes on to diffusers' own methods, and that is logged once; ``guard.diffusers_vae`` says in
whose place it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from vae_lib.engine import Operation
from vae_lib.guard import diffusers_vae
from vae_lib.guard.alone import Alone
from vae_lib.guard.diffusers_vae import Methods
from vae_lib.planning import Route
from vae_lib.planning.route import EXACT


class Guarded(Alone):
    """The guard of one VAE."""

    program = "diffusers'"

    def __deepcopy__(self, memo: Any) -> Guarded:
        return self

    def __reduce__(self) -> Any:
        return type(None), ()  # a file has nothing of it

    def run(self, vae: Any, operation: Operation, x: Tensor) -> Tensor:
        """Implements ``diffusers_vae.Runner``."""
        seam = Methods(vae)
        made = self.attempt(seam, operation, x)
        return diffusers_vae.own(vae, operation, x) if made is None else seam.given(operation, made, x)


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
        memory, on_event: as ``Alone`` has them.

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
