"""The settings in Settings > VAE Guard, read with care: a config.json may hold anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vae_lib.decode import Route
from vae_lib.errors import InputError
from vae_lib.webui import notices

SECTION = ("vae_guard", "VAE Guard")
MODES = ("Automatic (by predicted need)", "Fixed threshold")
FALLBACKS = {
    "Tiled": Route.TILED,
    "Tiled + RAM": Route.OFFLOAD,
    "CPU": Route.CPU,
    "TAESD": Route.TAESD,
}


@dataclass(frozen=True)
class Settings:
    """The settings as the rest of the extension sees them.

    Attributes:
        fixed: compare free memory with ``threshold`` instead of predicting the need.
        threshold: in GB (10^9 bytes).
        fallback: the ways that may be taken instead of the full decode, the preferred first.
        reserve_mb: memory in MB (10^6 bytes) that is left alone.
        encode: whether encoding falls back as well.
        keep: of how many generations the latents are kept in RAM.
        disk_mb: the most MB (10^6 bytes) of latents on disk of pictures that are not finished; 0: none are written.
    """

    fixed: bool = False
    threshold: float = 4.0
    fallback: tuple[Route, ...] = (Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD)
    reserve_mb: int = 256
    encode: bool = True
    keep: int = 4
    disk_mb: int = 256


@dataclass(frozen=True)
class Option:
    """One setting: its key in config.json, its default there, and the check that makes it usable."""

    key: str
    default: Any
    check: Callable[[Any], Any]


def _mode(value: Any) -> bool:
    if value not in MODES:
        raise InputError(f"must be one of {', '.join(MODES)}")
    return bool(value == MODES[1])


def _number(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            raise InputError(f"must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Callable[[Any], int]:
    number = _number(least, most)
    return lambda value: int(number(value))


def _routes(value: Any) -> tuple[Route, ...]:
    if not isinstance(value, (list, tuple)) or any(name not in FALLBACKS for name in value):
        raise InputError(f"must be a list of {', '.join(FALLBACKS)}")
    return tuple(dict.fromkeys(FALLBACKS[name] for name in value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError("must be true or false")
    return value


OPTIONS = {
    "fixed": Option("vae_guard_mode", MODES[0], _mode),
    "threshold": Option("vae_guard_threshold", 4.0, _number(0.0, 1024.0)),
    "fallback": Option("vae_guard_fallback", list(FALLBACKS), _routes),
    "reserve_mb": Option("vae_guard_reserve", 256, _whole(0, 65536)),
    "encode": Option("vae_guard_encode", True, _flag),
    "keep": Option("vae_guard_keep", 4, _whole(0, 64)),
    "disk_mb": Option("vae_guard_disk", 256, _whole(0, 65536)),
}


def read() -> Settings:
    """The settings now, overrides of the running generation included; a bad value is told and its default used."""
    from modules import shared

    values = {}
    for name, option in OPTIONS.items():
        if not _is_ours(option.key):
            continue
        value = getattr(shared.opts, option.key, option.default)
        try:
            values[name] = option.check(value)
        except (InputError, TypeError) as error:
            notices.tell_once(
                f"{option.key}={value!r}",
                f"the setting '{option.key}' is {value!r}, which cannot be used (it {error}); "
                f"{option.default!r} is used. Choose another in Settings > VAE Guard.",
            )
    return Settings(**values)


def _is_ours(key: str) -> bool:
    from modules import shared

    info = shared.opts.data_labels.get(key)
    return info is None or tuple(info.section or ())[:1] == SECTION[:1]


def add_to_settings() -> None:
    """Add the section to the settings page; a key that someone else owns is left alone."""
    import gradio as gr
    from modules import shared
    from modules.shared import OptionInfo
    from modules.ui_components import DropdownMulti

    infos = {
        "fixed": OptionInfo(
            MODES[0], "When to fall back from the full VAE decode", gr.Radio, {"choices": list(MODES)}
        ).info("automatic: when the picture needs more than is free; every way but TAESD gives the same picture"),
        "threshold": OptionInfo(
            4.0, "Fixed threshold: free memory in GB below which the full decode is not tried", gr.Slider,
            {"minimum": 0, "maximum": 80, "step": 0.25},
        ),
        "fallback": OptionInfo(
            list(FALLBACKS), "Fall back to, in this order", DropdownMulti, {"choices": list(FALLBACKS)}
        ).info("TAESD is approximate; its latents are kept so that the picture can be decoded again in full"),
        "reserve_mb": OptionInfo(
            256, "Memory to leave alone, in MB", gr.Slider, {"minimum": 0, "maximum": 8192, "step": 64}
        ),
        "encode": OptionInfo(True, "Fall back when encoding, too").info("img2img, inpaint, hires fix"),
        "keep": OptionInfo(
            4, "Generations whose latents are kept in RAM", gr.Slider, {"minimum": 0, "maximum": 64, "step": 1}
        ).info("to decode them again; 64 kB each for a 1024x1024 picture"),
        "disk_mb": OptionInfo(
            256, "Most disk space for latents of unfinished pictures, in MB", gr.Slider,
            {"minimum": 0, "maximum": 4096, "step": 16},
        ).info("written before each decode, removed after it; what a crash leaves can be decoded later. 0: off"),
    }  # fmt: skip
    for name, info in infos.items():
        key = OPTIONS[name].key
        if not _is_ours(key):
            notices.tell_once(
                f"owner of {key}",
                f"another extension owns the setting '{key}': it was left alone, and "
                f"{OPTIONS[name].default!r} is used here.",
            )
            continue
        info.section, info.category_id = SECTION, "sd"
        shared.opts.add_option(key, info)
