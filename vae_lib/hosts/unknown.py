"""A WebUI that we do not know: nothing of it is touched, but a tab says so where it can have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Host:
    """Only what it takes to say that we are of no use here."""

    is_known = False

    def __init__(self, problem: str) -> None:
        self.problem = problem  # what was looked for in vain, for those who report it

    def show_tab(self, build: Callable[[], list[tuple[Any, str, str]]]) -> None:
        """``build`` makes it: a gr.Blocks, its title and its elem_id."""
        try:
            from modules import script_callbacks
        except ImportError:
            return
        register: Any = getattr(script_callbacks, "on_ui_tabs", None)
        if register is not None:
            register(build)
