"""Haoming02's Forge Classic: as reForge is, without --lowvram."""

from __future__ import annotations

import importlib.util

from vae_lib.hosts import reforge


class Host(reforge.Host):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "Forge Classic"


def is_here() -> bool:
    return reforge.is_here() and importlib.util.find_spec("modules.lowvram") is None
