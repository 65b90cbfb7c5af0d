"""Pictures that were sampled but not decoded: the process died in between, or nothing could decode them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vae_lib.errors import VAEGuardError
from vae_lib.ui import markup
from vae_lib.ui.backend import Backend
from vae_lib.ui.hints import hinted


class UnfinishedSection:
    """A list, "Decode now" and "Remove".

    Attributes:
        outputs: the components that ``show`` fills.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.said = gr.HTML(elem_id="vg_unfinished_said")
        with gr.Row(variant="compact"):
            self.titles = gr.Dropdown([], label="Latents of", elem_id="vg_unfinished", scale=4)
            self.go = gr.Button("Decode now", variant="primary", elem_id="vg_finish", min_width=120)
            self.remove = gr.Button("Remove", elem_id="vg_unfinished_remove", min_width=80)
        self.gallery = gr.Gallery(
            label="Pictures", columns=2, object_fit="contain", visible=False, elem_id="vg_finished"
        )
        self.report = gr.Textbox(
            label="VAE Guard failed and the WebUI's own code was used. Please report it with this text:",
            lines=6, max_lines=20, interactive=False, show_copy_button=True, visible=False, elem_id="vg_report",
        )  # fmt: skip
        self.outputs = [self.said, self.titles, self.go, self.remove, self.report]
        hinted(self.titles, "Pictures that were sampled, but have not been decoded")
        hinted(self.go, "Decode these latents exactly, and save the pictures among the others")
        hinted(self.remove, "Throw these latents away")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_name": False}
        self.go.click(self._finish, self.titles, [*self.outputs, self.gallery], **quiet)
        self.remove.click(self._remove, self.titles, self.outputs, **quiet)

    def show(self, said: str = "") -> list[Any]:
        """The list as it is now."""
        titles = list(self._backend.unfinished() or ())
        if not said and not titles:
            said = markup.page(
                '<p class="vg-dim">Every picture was finished. Latents are saved before each decode; if it fails, or '
                "the WebUI dies in it, they are listed here.</p>"
            )
        some, report = bool(titles), self._backend.report()
        return [
            said,
            gr.update(choices=titles, value=titles[0] if some else None, visible=some),
            gr.update(visible=some),
            gr.update(visible=some),
            gr.update(value=report, visible=bool(report)),
        ]

    def _finish(self, title: str | None) -> list[Any]:
        try:
            pictures = list(self._backend.finish(title or ""))
        except VAEGuardError as error:
            return [*self.show(markup.note(str(error), "bad")), gr.update()]
        done = markup.note("Decoded, and saved with the other pictures.")
        return [*self.show(done), gr.update(value=pictures, visible=True)]

    def _remove(self, title: str | None) -> list[Any]:
        try:
            self._backend.discard(title or "")
        except VAEGuardError as error:
            return self.show(markup.note(str(error), "bad"))
        return self.show(markup.note("Removed."))
