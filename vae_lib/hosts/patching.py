"""Patches of the host's functions, through its own helper, that can always be undone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from modules import patches

KEY = "vae_guard"
Function = Callable[..., Any]


class Patches:
    """Those that are in force."""

    def __init__(self) -> None:
        self._applied: list[tuple[Any, str, Any]] = []

    def patch(self, owner: Any, field: str, make: Callable[[Function], Function]) -> None:
        """Replace ``owner.field`` by ``make(original)``, which keeps the original's name and signature."""
        _undo(owner, field)
        original = getattr(owner, field)
        replacement = make(original)
        functools.update_wrapper(replacement, original)
        active = [True]

        @functools.wraps(original)
        def patched(*args: Any, **kwargs: Any) -> Any:
            return (replacement if active[0] else original)(*args, **kwargs)

        patched._vae_guard_active = active  # type: ignore[attr-defined]
        patches.patch(KEY, owner, field, patched)
        self._applied.append((owner, field, patched))

    def undo_all(self) -> None:
        """Put every original back."""
        while self._applied:
            owner, field, patched = self._applied.pop()
            patched._vae_guard_active[0] = False
            _undo(owner, field)


def _undo(owner: Any, field: str) -> None:
    """Put the original back. Where someone patched over ours, theirs stays and ours only passes on."""
    original = patches.original(KEY, owner, field)
    if original is None:
        return
    current = getattr(owner, field)
    if hasattr(current, "_vae_guard_active") and current.__dict__.get("__wrapped__") is original:
        patches.undo(KEY, owner, field)
    else:
        patches.originals[KEY].pop((owner, field))
