"""The WebUIs that VAE Guard serves: the only room that imports their packages.

Each is a module with ``is_here()`` and a class ``Host``, which implements ``guard.host.Host`` and ``webui.host.WebUI``.
"""

from __future__ import annotations

import importlib
from typing import Any

from vae_lib.hosts import unknown

KNOWN = (
    "sdnext",
    "neo",
    "forge",
    "forge_classic",
    "reforge",
    "a1111",
)  # modules of this package; the first that is here is taken
# Packages by which the relatives are distinguished.
RELATIVES_ONLY = ("backend", "ldm_patched", "modules_forge", unknown.SDNEXTS)


def choose() -> Any:
    """The WebUI that is running, as far as we know it; otherwise one that can only be reported."""
    problem = ""
    for name in KNOWN:
        try:
            module = importlib.import_module(f"vae_lib.hosts.{name}")
            is_here = module.is_here()
        except Exception as error:  # it lacks what this one has
            is_another = isinstance(error, ModuleNotFoundError) and error.name in RELATIVES_ONLY
            problem = problem or ("" if is_another else unknown.described(error))
            continue
        if is_here:
            return _started(module.Host)
    return unknown.Host(problem or _missing(), unknown.recognised())


def _started(host_class: Any) -> Any:
    """A host that answers the questions that every start and every generation asks of it."""
    try:
        host = host_class()
        host.folders(), host.settings(), host.device(), host.dtype()
        host.repair_dtypes(), host.checks_numbers(), host.has_api()
    except Exception as error:  # a fork, or a version, that differs in what nothing above has looked at
        return instead_of(host_class, error)
    return host


def instead_of(host: Any, error: Exception) -> unknown.Host:
    """What is left of a host that was recognised, and in which we cannot start."""
    return unknown.Host(unknown.described(error), f"this version of {host.name}")


def _missing() -> str:
    """The picture functions that are not there, which all hosts have."""
    try:
        from vae_lib.hosts import picture_functions
    except Exception as error:
        return unknown.described(error)
    return ", ".join(picture_functions.missing())
