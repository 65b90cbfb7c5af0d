"""The page's own dropdown of VAEs shows what is chosen, whoever chose it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vae_lib.ui.files_section import USES
from vae_lib.webui.host import WebUI

_APPLIED = "settings_result"  # the line that tells what "Apply settings" has changed


class VAEDropdown:
    """Fills it anew after the tab has chosen a VAE, and after settings were applied, of which one may be refused."""

    def __init__(self, host: WebUI) -> None:
        self._host = host
        self._made: dict[str, Any] = {}

    def begin(self) -> None:
        """A new page is about to be made."""
        self._made.clear()

    def made(self, component: Any, elem_id: str) -> None:
        """Told of every component of the page, in any order."""
        dropdown, triggers = self._host.vae_dropdown, (USES, _APPLIED)
        if dropdown is None or elem_id not in (dropdown, *triggers):
            return
        self._made[elem_id] = component
        new = triggers if elem_id == dropdown else (elem_id,)
        if dropdown in self._made:
            for trigger in new:
                if trigger in self._made:
                    self._made[trigger].change(
                        self._now, None, self._made[dropdown], show_progress="hidden", api_name=False
                    )

    def _now(self) -> Any:
        return gr.update(value=self._host.vae_setting())
