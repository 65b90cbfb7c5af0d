"""The accordion in txt2img and img2img: how this generation is to be decoded."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import scripts
from modules.infotext_utils import PasteField

from vae_lib.errors import InputError
from vae_lib.webui import infotext, kept, notices, request

TITLE = "VAE Guard"


class VAEGuardScript(scripts.Script):
    """Always there; collapsed to one line."""

    def __init__(self) -> None:
        self._gallery: Any = None
        tabs = ("txt2img", "img2img")
        self.on_after_component_elem_id = [
            *((f"{tab}_gallery", self._remember_gallery) for tab in tabs),
            *((f"html_log_{tab}", self._connect_button) for tab in tabs),
        ]
        self._again: Any = None

    def title(self) -> str:
        return TITLE

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        default = request.Request()
        tab = "img2img" if is_img2img else "txt2img"
        with gr.Accordion(TITLE, open=False, elem_id=f"{tab}_vae_guard"):
            with gr.Row():
                fallback = gr.Checkbox(
                    default.fallback, label="Auto fallback", elem_id=self.elem_id("fallback"), min_width=120
                )
                decode_by = gr.Dropdown(
                    list(request.DECODE_BY), value=default.decode_by, label="Decode by",
                    elem_id=self.elem_id("decode_by"), min_width=120,
                )  # fmt: skip
                threshold = gr.Number(
                    default.threshold, label="Threshold in GB (0: as in the settings)", minimum=0,
                    maximum=request.LARGEST_THRESHOLD, elem_id=self.elem_id("threshold"), min_width=120,
                )  # fmt: skip
            self._again = gr.Button(
                "Decode again in full", elem_id=f"{tab}_vae_guard_again", elem_classes=["vae-guard-again"]
            )
        self.infotext_fields = [
            PasteField(fallback, infotext.pasted_fallback, api="vae_guard_fallback"),
            PasteField(decode_by, infotext.pasted_decode_by, api="vae_guard_decode_by"),
            PasteField(threshold, infotext.pasted_threshold, api="vae_guard_threshold"),
        ]
        self.paste_field_names = [infotext.FALLBACK, infotext.DECODE_BY, infotext.THRESHOLD]
        return [fallback, decode_by, threshold]

    def before_process(self, p: Any, *args: Any) -> None:
        try:
            wanted = request.from_args(args)
        except InputError as error:
            notices.tell(f"{error} The defaults are used.", warning=True)
            p.comment(f"VAE Guard: {error} The defaults are used.")
            wanted = request.Request()
        # XYZ axes set theirs on p, a copy for each cell.
        p.vae_guard = request.merged(wanted, getattr(p, "vae_guard_axes", {}))

    def _remember_gallery(self, component: Any) -> None:
        self._gallery = component.component

    def _connect_button(self, component: Any) -> None:
        if self._again is None or self._gallery is None:
            return
        self._again.click(
            kept.redecode_for_page, inputs=[self._gallery], outputs=[self._gallery, component.component]
        )
