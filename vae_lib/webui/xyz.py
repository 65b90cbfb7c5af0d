"""Axes of the X/Y/Z plot script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vae_lib.webui.request import DECODE_BY, decode_by_of, threshold_of

PREFIX = "[VAE Guard]"


def add_axes() -> None:
    """Add our axes to the loaded script, once."""
    from modules import scripts

    for data in scripts.scripts_data:
        module = data.module
        if data.script_class.__module__ != "xyz_grid.py" or not hasattr(module, "axis_options"):
            continue
        present = {option.label for option in module.axis_options}
        axes = [
            module.AxisOption(
                f"{PREFIX} Decode by",
                str,
                _apply("decode_by"),
                confirm=_confirm,
                choices=lambda: list(DECODE_BY),
            ),
            module.AxisOption(f"{PREFIX} Threshold", float, _apply("threshold"), confirm=_confirm_threshold),
        ]
        module.axis_options.extend(axis for axis in axes if axis.label not in present)


def _apply(name: str) -> Callable[[Any, Any, Any], None]:
    def apply(p: Any, value: Any, values: Any) -> None:
        p.vae_guard_axes = {
            **getattr(p, "vae_guard_axes", {}),
            name: value,
        }  # p's are shallow copies: a new dict

    return apply


def _confirm(p: Any, values: list[Any]) -> None:
    for value in values:
        decode_by_of(value)


def _confirm_threshold(p: Any, values: list[Any]) -> None:
    for value in values:
        threshold_of(value)
