"""The settings in Settings > VAE Guard, read with care: a config.json may hold anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vae_lib import planning
from vae_lib.device import kinds
from vae_lib.errors import written
from vae_lib.planning import Route

CPU_NAME = "CPU"
MODES = ("Automatic (by predicted need)", "Fixed threshold")
FALLBACKS = {route.caption: route for route in planning.FALLBACKS}


@dataclass(frozen=True)
class Option:
    """One setting: its key in config.json, its default there, and the check that makes it usable.

    ``check`` raises a ValueError or TypeError that says, after the value, what it must be.
    """

    key: str
    default: Any
    check: Callable[[Any], Any]


def _mode(value: Any) -> bool:
    if value not in MODES:
        raise ValueError(f"must be one of {', '.join(MODES)}")
    return bool(value == MODES[1])


def _number(least: float, most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not least <= value <= most:
            raise ValueError(f"must be a number from {least:g} to {most:g}")
        return float(value)

    return check


def _whole(least: int, most: int) -> Callable[[Any], int]:
    number = _number(least, most)
    return lambda value: int(number(value))


def _routes(value: Any) -> tuple[Route, ...]:
    if not isinstance(value, (list, tuple)) or any(name not in FALLBACKS for name in value):
        raise ValueError(f"must be a list of {', '.join(FALLBACKS)}")
    return tuple(dict.fromkeys(FALLBACKS[name] for name in value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _device(value: Any) -> torch.device:
    names = spare_devices()
    if value not in names:
        raise ValueError(f"must be one of {', '.join(names)}, which this machine has")
    return torch.device(str(value).lower())


def spare_devices() -> list[str]:
    """What "another device" may be: the CPU first, which every machine has."""
    others = (str(device) for device in kinds.devices() if not kinds.of(device).in_main_memory)
    return [CPU_NAME, *others]


OPTIONS = {
    "fixed": Option("vae_guard_mode", MODES[0], _mode),
    "threshold": Option("vae_guard_threshold", 4.0, _number(0.0, 1024.0)),
    "fallback": Option("vae_guard_fallback", list(FALLBACKS), _routes),
    "reserve_mb": Option("vae_guard_reserve", 256, _whole(0, 65536)),
    "spare": Option("vae_guard_spare", CPU_NAME, _device),
    "encode": Option("vae_guard_encode", True, _flag),
    "keep": Option("vae_guard_keep", 4, _whole(0, 64)),
    "disk_mb": Option("vae_guard_disk", 256, _whole(0, 65536)),
}


def _default(name: str) -> Any:
    option = OPTIONS[name]
    return option.check(option.default)


@dataclass(frozen=True)
class Settings:
    """The settings as the rest of the extension sees them.

    Attributes:
        fixed: compare free memory with ``threshold`` instead of predicting the need.
        threshold: in GB (10^9 bytes).
        fallback: the routes that may be taken instead of the full decode, the preferred first.
        reserve_mb: memory in MB (10^6 bytes) that is left free.
        spare: the other device, on which the route ``CPU`` computes.
        encode: whether encoding falls back as well.
        keep: of how many generations the latents are kept in RAM.
        disk_mb: the most MB (10^6 bytes) of latents on disk of pictures that are not finished; 0: none are written.
    """

    fixed: bool = _default("fixed")
    threshold: float = _default("threshold")
    fallback: tuple[Route, ...] = _default("fallback")
    reserve_mb: int = _default("reserve_mb")
    spare: torch.device = field(default_factory=lambda: _default("spare"))
    encode: bool = _default("encode")
    keep: int = _default("keep")
    disk_mb: int = _default("disk_mb")


def read(values: Mapping[str, object], tell_once: Callable[[str, str], None]) -> Settings:
    """The settings of the host's values by key. Bad values are reported (key, sentence), and their defaults used."""
    found, bad = {}, []
    for name, option in OPTIONS.items():
        if option.key not in values:
            continue
        value = values[option.key]
        try:
            found[name] = option.check(value)
        except (ValueError, TypeError) as error:
            bad.append(f"{option.key} is {written(value)} and {error}")
    if bad:
        several = len(bad) > 1
        tell_once(
            "; ".join(bad),
            f"the default{'s' * several} of {len(bad)} setting{'s' * several} {'are' if several else 'is'} used, for "
            f"config.json has invalid values: {'; '.join(bad)}. Choose others in Settings > VAE Guard, and apply them.",
        )
    return Settings(**found)
