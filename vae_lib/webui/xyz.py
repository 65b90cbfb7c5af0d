"""Axes of the X/Y/Z plot script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vae_lib.guard.request import DECODE_BY, decode_by_of, threshold_of
from vae_lib.webui.host import WebUI

PREFIX = "[VAE Guard]"


def add_axes(host: WebUI) -> None:
    """Add our axes to the loaded script, once."""
    by: dict[str, Any] = {"confirm": _confirm(decode_by_of), "choices": lambda: list(DECODE_BY)}
    host.add_axes(
        [
            (f"{PREFIX} Decode by", str, _apply("decode_by"), by),
            (f"{PREFIX} Threshold", float, _apply("threshold"), {"confirm": _confirm(threshold_of)}),
        ]
    )


def _apply(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        # p's are shallow copies: a new dict
        p.vae_guard_axes = {**getattr(p, "vae_guard_axes", {}), name: value}

    return apply


def _confirm(check: Callable[[Any], object]) -> Callable[[Any, list[Any]], None]:
    def confirm(p: Any, values: list[Any]) -> None:
        for value in values:
            check(value)

    return confirm
