"""One file an architecture: its layers as passes. Each is found by being here, and names its ``NETWORK``."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any, Protocol

from vae_lib.engine.compute import Compute
from vae_lib.engine.passes import MapSize, Pass, Tiling
from vae_lib.networks import Network


class Program(Protocol):
    """A network's halves as passes; the 1x1 convolutions between them and the latents are not in it.

    Attributes:
        RECOMPUTES: whether `Tiling.recompute` makes a difference.
    """

    RECOMPUTES: bool

    def decoder_passes(self, network: Any, latent: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
        """From the latents to the picture."""

    def encoder_passes(self, network: Any, image: MapSize, tiling: Tiling, compute: Compute) -> list[Pass]:
        """From the picture to the moments."""


def _listed() -> dict[type, Any]:
    modules = (import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
    return {module.NETWORK: module for module in modules if hasattr(module, "NETWORK")}


_PROGRAMS = _listed()


def of(network: Network) -> Program:
    """The program that runs a network."""
    program: Program = _PROGRAMS[type(network)]
    return program
