"""What the tab needs where there is no WebUI that brings it along: found out before gradio is imported."""

from __future__ import annotations

import importlib.util
import os
from importlib import metadata

from vae_lib.errors import InputError

# Versions that work together, each exact because gradio leaves open what newer versions of the others break. They are
# also the extra "ui" of pyproject.toml.
PACKAGES = ("gradio==4.40.0", "fastapi==0.104.1", "pydantic==2.8.2", "huggingface_hub==0.36.2")
INSTALL = f"install versions that work together: pip install {' '.join(PACKAGES)}"

_HERE = ("localhost", "127.0.0.1")


def check() -> None:
    """Raise an InputError where the installed versions are known not to work together."""
    found = {name: _version(name) for name in ("gradio", "starlette")}
    if _major(found["gradio"]) > 4:
        raise InputError(f"The tab works with gradio 3.41 and 4.40, and {found['gradio']} is installed; {INSTALL}.")
    if found["gradio"] and _major(found["starlette"]) > 0:
        together = f"gradio {found['gradio']} does not work with the installed starlette {found['starlette']}"
        raise InputError(f"{together}; {INSTALL}.")


def import_problem(error: Exception) -> InputError:
    """The sentence for gradio's, or its packages', failure to be imported."""
    package = (getattr(error, "name", None) or "gradio").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and importlib.util.find_spec(package) is None:
        return InputError(f"The tab needs the package {package}, which is not installed; {INSTALL}.")
    said = str(error).partition("\n")[0].rstrip(".")
    return InputError(f"The package gradio cannot be loaded ({type(error).__name__}: {said}); {INSTALL}.")


def environment() -> dict[str, str]:
    """Variables with which nothing leaves this machine, and its own addresses are not looked for behind a proxy.

    gradio gives up when its page does not answer at its own address.
    """
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _HERE if host not in hosts]
    direct = ",".join(hosts)
    analytics = os.environ.get("GRADIO_ANALYTICS_ENABLED", "False")
    return {"GRADIO_ANALYTICS_ENABLED": analytics, "no_proxy": direct, "NO_PROXY": direct}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0
