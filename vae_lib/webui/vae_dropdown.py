"""The page's own dropdown of VAEs shows what is chosen, whoever chose it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from vae_lib.ui.events import QUIET
from vae_lib.ui.files_section import USES
from vae_lib.ui.versions import IS_GRADIO_4
from vae_lib.webui.host import WebUI

# After a choice in the tab, and by the line that tells what "Apply settings" has changed; but to gradio 4 HTML changes
# with every update of the page, so that an event of it that updates something never ends.
_TRIGGERS = (USES,) if IS_GRADIO_4 else (USES, "settings_result")


class VAEDropdown:
    """Fills it anew after the tab has chosen a VAE, and after settings were applied, of which one may be refused."""

    def __init__(self, host: WebUI) -> None:
        self._host = host
        self._dropdown: Any = None
        self._triggers: list[Any] = []

    def begin(self) -> None:
        """A new page is about to be made."""
        self._dropdown = None
        self._triggers.clear()

    def made(self, component: Any, elem_id: str) -> None:
        """Told of every component of the page, in any order; by gradio 4 of copies that it makes for updates, too."""
        if Context.root_block is None:
            return
        if self._host.is_vae_dropdown(component, elem_id):
            self._dropdown, new = component, list(self._triggers)
        elif elem_id in _TRIGGERS:
            self._triggers.append(component)
            new = [component]
        else:
            return
        if self._dropdown is not None:
            for trigger in new:
                trigger.change(self._now, None, self._dropdown, **QUIET)

    def _now(self) -> Any:
        return gr.update(**self._host.vae_setting())
