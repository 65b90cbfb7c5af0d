"""The page's own dropdown of VAEs shows what is chosen, whoever chose it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from vae_lib.ui.files_section import USES
from vae_lib.ui.versions import IS_GRADIO_4
from vae_lib.webui.host import WebUI

_DROPDOWN = "dropdown"
# After a choice in the tab, and by the line that tells what "Apply settings" has changed; but to gradio 4 HTML changes
# with every update of the page, so that an event of it that updates something never ends.
_TRIGGERS = (USES,) if IS_GRADIO_4 else (USES, "settings_result")


class VAEDropdown:
    """Fills it anew after the tab has chosen a VAE, and after settings were applied, of which one may be refused."""

    def __init__(self, host: WebUI) -> None:
        self._host = host
        self._made: dict[str, Any] = {}

    def begin(self) -> None:
        """A new page is about to be made."""
        self._made.clear()

    def made(self, component: Any, elem_id: str) -> None:
        """Told of every component of the page, in any order; by gradio 4 of copies that it makes for updates, too."""
        is_dropdown = self._host.is_vae_dropdown(component, elem_id)
        if not (is_dropdown or elem_id in _TRIGGERS) or Context.root_block is None:
            return
        self._made[_DROPDOWN if is_dropdown else elem_id] = component
        if _DROPDOWN not in self._made:
            return
        for trigger in _TRIGGERS if is_dropdown else (elem_id,):
            if trigger in self._made:
                self._made[trigger].change(
                    self._now, None, self._made[_DROPDOWN], show_progress="hidden", api_name=False
                )

    def _now(self) -> Any:
        return gr.update(value=self._host.vae_setting())
