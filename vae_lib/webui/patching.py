"""Patches of the host's functions, through its own helper, that can always be undone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

KEY = "vae_guard"

_applied: list[tuple[Any, str, Any]] = []


def patch(owner: Any, field: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``owner.field`` by ``make(original)``, which keeps the original's name and signature."""
    from modules import patches

    undo(owner, field)
    original = getattr(owner, field)
    replacement = make(original)
    functools.update_wrapper(replacement, original)
    active = [True]

    @functools.wraps(original)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return (replacement if active[0] else original)(*args, **kwargs)

    patched._vae_guard_active = active  # type: ignore[attr-defined]
    patches.patch(KEY, owner, field, patched)
    _applied.append((owner, field, patched))


def undo(owner: Any, field: str) -> None:
    """Put the original back. Where someone patched over ours, theirs stays and ours only passes on."""
    from modules import patches

    if patches.original(KEY, owner, field) is None:
        return
    current = getattr(owner, field)
    if hasattr(current, "_vae_guard_active") and current.__dict__.get("__wrapped__") is patches.original(
        KEY, owner, field
    ):
        patches.undo(KEY, owner, field)
    else:
        patches.originals[KEY].pop((owner, field))


def undo_all() -> None:
    """Undo every patch made through this module."""
    while _applied:
        owner, field, patched = _applied.pop()
        patched._vae_guard_active[0] = False
        undo(owner, field)
