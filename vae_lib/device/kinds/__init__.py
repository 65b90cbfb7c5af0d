"""The kinds of device that we know: every file here has a ``KIND``, and is found by being here."""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module

import torch

from vae_lib.device.kind import Kind


def listed() -> dict[str, Kind]:
    """The kinds of this folder by the types of their devices, in the order of the files' names."""
    modules = (import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
    return {module.KIND.name: module.KIND for module in modules}


KNOWN = listed()


def of(device: torch.device) -> Kind:
    """The kind of a device; of a type that no file names, a kind of which nothing is known."""
    kind = KNOWN.get(device.type)
    return _unknown(device.type) if kind is None else kind


@functools.cache
def _unknown(name: str) -> Kind:
    return Kind(name)


def devices() -> list[torch.device]:
    """All devices that this process can use, the best kind first; of the CPU without a number."""
    return [
        torch.device(kind.name) if kind.in_main_memory else torch.device(kind.name, index)
        for kind in there()
        for index in range(kind.count())
    ]


def there() -> list[Kind]:
    """The kinds that this process has devices of, the best first."""
    usable = [kind for kind in KNOWN.values() if kind.count()]
    return sorted(usable, key=lambda kind: kind.in_main_memory)
