"""A WebUI that we do not serve: nothing of it is touched, but a tab says so where it can have one."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

from vae_lib.errors import printable
from vae_lib.guard import UNKNOWN

NAMED = {"neo": "this version of Forge Neo"}  # by what a fork of Forge calls its version
SDNEXTS = "modules.processing_vae"  # which no other has


class Host:
    """Only what it takes to say that we are of no use here.

    Attributes:
        sentence: what the user is to read: that we do nothing here, why, and what may help.
    """

    is_known = False

    def __init__(self, problem: str, name: str = "") -> None:
        """``problem``: what is missing, for those who report it; ``name``: of the WebUI, if it was recognised."""
        said = f"VAE Guard does not support {name} yet: its own decode is used." if name else UNKNOWN
        reason = f" The problem: {printable(problem)}." if problem else ""
        self.sentence = f"{said}{reason} An update of VAE Guard may help: Extensions > Check for updates."

    def show_tab(self, build: Callable[[], list[tuple[Any, str, str]]], unloaded: Callable[[], None]) -> None:
        """``build`` makes it: a gr.Blocks, its title and its elem_id. ``unloaded`` is called when the script goes."""
        try:
            from modules import script_callbacks
        except ImportError:
            return
        for name, callback in (("on_ui_tabs", build), ("on_script_unloaded", unloaded)):
            register: Any = getattr(script_callbacks, name, None)
            if register is not None:
                register(callback)

    def stop(self) -> None:
        """There is nothing to undo."""


def recognised() -> str:
    """The name of a WebUI that its version names, or a module of its own; empty for any other."""
    with contextlib.suppress(ImportError, ValueError):  # there are no ``modules``
        if importlib.util.find_spec(SDNEXTS) is not None:
            return "this version of SD.Next"
    return NAMED.get(forge_version(), "")


def forge_version() -> str:
    """What a fork of Forge calls its version: a number, or its own name. Empty where it has none."""
    try:
        from modules_forge import forge_version
    except Exception:  # no fork of Forge, or one that keeps it elsewhere
        return ""
    return str(getattr(forge_version, "version", ""))


def described(error: Exception) -> str:
    """An error of the host's for our sentence; of most errors the text alone says nothing."""
    text = str(error).rstrip(".")
    return text if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {text}"
