"""The WebUIs that VAE Guard serves: the only room that imports their packages.

Each is a module with ``is_here()`` and a class ``Host``, which implements ``guard.host.Host`` and ``webui.host.WebUI``.
"""

from __future__ import annotations

import importlib
from typing import Any

from vae_lib.hosts import unknown

KNOWN = (
    "forge",
    "forge_classic",
    "reforge",
    "a1111",
)  # modules of this package; the first that is here is taken


def choose() -> Any:
    """The WebUI that is running, as far as we know it; otherwise one that is only told so."""
    problem = ""
    for name in KNOWN:
        try:
            module = importlib.import_module(f"vae_lib.hosts.{name}")
        except (ImportError, AttributeError) as error:  # it lacks what this one has
            problem = str(error)
            continue
        if module.is_here():
            return module.Host()
    return unknown.Host(problem)
