"""AUTOMATIC1111's Stable Diffusion WebUI, and forks that keep the VAE where it does."""

from __future__ import annotations

import importlib.util
from typing import Any

from modules import shared

from vae_lib.guard.host import HostVAE
from vae_lib.hosts import picture_functions
from vae_lib.hosts.a1111_family import A1111Family
from vae_lib.hosts.first_stage import FirstStage


class Host(A1111Family):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "AUTOMATIC1111's WebUI"

    def vae(self, model: Any = None) -> HostVAE | None:
        model = shared.sd_model if model is None else model
        return FirstStage(model) if getattr(model, "first_stage_model", None) is not None else None


def is_here() -> bool:
    """Forge has all the functions, but keeps the VAE elsewhere; its packages tell it apart."""
    is_forge = all(importlib.util.find_spec(name) is not None for name in ("modules_forge", "backend"))
    return not is_forge and not picture_functions.missing()
