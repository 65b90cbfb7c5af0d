"""A WebUI that we do not know: nothing of it is touched, but a tab says so where it can have one."""

from __future__ import annotations

from typing import Any

from vae_lib.guard.host import Callbacks


class Host:
    """Only what it takes to say that we are of no use here."""

    is_known = False

    def __init__(self, problem: str) -> None:
        self.problem = problem  # what was looked for in vain, for those who report it

    def start(self, callbacks: Callbacks) -> None:
        try:
            from modules import script_callbacks
        except ImportError:
            return
        for register, callback in (("on_ui_tabs", callbacks.tabs), ("on_script_unloaded", callbacks.stop)):
            known: Any = getattr(script_callbacks, register, None)
            if known is not None:
                known(callback)
