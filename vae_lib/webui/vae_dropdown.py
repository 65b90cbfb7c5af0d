"""The page's own dropdown of VAEs shows what is chosen, whoever chose it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from vae_lib.ui.events import QUIET
from vae_lib.ui.files_section import USES
from vae_lib.ui.versions import IS_GRADIO_4, event_of
from vae_lib.webui.host import WebUI

_APPLY = "settings_submit"
_AFTER_APPLY = "change_checkpoint"  # made as soon as the host has said what "Apply settings" does


class VAEDropdown:
    """Fills it again after the tab has chosen a VAE, and after settings were applied, of which one may be refused."""

    def __init__(self, host: WebUI) -> None:
        self._host = host
        self._dropdown: Any = None
        self._uses: Any = None
        self._apply: Any = None

    def begin(self) -> None:
        """A new page is about to be made."""
        self._dropdown = self._uses = self._apply = None

    def made(self, component: Any, elem_id: str) -> None:
        """Called for every component of the page, in any order; by gradio 4 for copies that it makes of them, too."""
        if Context.root_block is None:
            return
        if self._host.is_vae_dropdown(component, elem_id):
            self._dropdown = component
        elif elem_id == USES:
            self._uses = component
        elif elem_id == _APPLY:
            self._apply = component
        if self._dropdown is None:
            return
        if self._uses is not None and (component is self._uses or component is self._dropdown):
            self._uses.change(self._now, None, self._dropdown, **QUIET)
        # Where gradio is 4 the host reads the files itself, and what it reads is never refused.
        if elem_id == _AFTER_APPLY and self._apply is not None and not IS_GRADIO_4:
            for number, event in enumerate(Context.root_block.dependencies):
                if event["targets"] == [self._apply._id] and event["trigger"] == "click":
                    event_of(self._apply, event, number).then(self._now, None, self._dropdown, **QUIET)

    def _now(self) -> Any:
        return gr.update(**self._host.vae_setting())
