"""The accordion in txt2img and img2img: how this generation is to be decoded."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from vae_lib.errors import InputError
from vae_lib.guard import Guard, decode_again, infotext, request, save
from vae_lib.webui.host import WebUI

TITLE = "VAE Guard"


def script_class(guard: Guard, host: WebUI) -> type:
    """The script of this host: always there, collapsed to one line."""

    class VAEGuardScript(host.script_class):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self._again = AgainButton(guard)
            self.on_after_component_elem_id = [
                *((f"{tab}_gallery", self._again.make) for tab in ("txt2img", "img2img")),
                *((f"generation_info_{tab}", self._again.watch) for tab in ("txt2img", "img2img")),
                *((f"html_log_{tab}", self._again.connect) for tab in ("txt2img", "img2img")),
            ]

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> object:
            return host.always_visible

        def ui(self, is_img2img: bool) -> list[Any]:
            default = request.Request()
            tab = "img2img" if is_img2img else "txt2img"
            with gr.Accordion(TITLE, open=False, elem_id=f"{tab}_vae_guard"), gr.Row():
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
            self.infotext_fields = [
                host.paste_field(fallback, infotext.pasted_fallback, "vae_guard_fallback"),
                host.paste_field(decode_by, infotext.pasted_decode_by, "vae_guard_decode_by"),
                host.paste_field(threshold, infotext.pasted_threshold, "vae_guard_threshold"),
            ]
            self.paste_field_names = [infotext.FALLBACK, infotext.DECODE_BY, infotext.THRESHOLD]
            return [fallback, decode_by, threshold]

        def before_process(self, p: Any, *args: Any) -> None:
            try:
                wanted = request.from_args(args)
            except InputError as error:
                guard.notices.tell(f"{error} The defaults are used.", warning=True)
                host.comment(p, f"VAE Guard: {error} The defaults are used.")
                wanted = request.Request()
            # XYZ axes set theirs on p, a copy for each cell.
            p.vae_guard = request.merged(wanted, getattr(p, "vae_guard_axes", {}))

    return VAEGuardScript


class AgainButton:
    """ "Decode again in full", below a picture that TAESD decoded."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._gallery: Any = None
        self._button: Any = None

    def make(self, created: Any) -> None:
        """Below the gallery that the host has just created."""
        self._gallery = created.component
        tab = self._gallery.elem_id.removesuffix("_gallery")
        self._button = gr.Button("Decode again in full", visible=False, elem_id=f"{tab}_vae_guard_again")

    def watch(self, created: Any) -> None:
        """This text changes with every generation. (An HTML in gradio 4 says so at every update of the page.)"""
        if self._button is not None:
            created.component.change(self._update, None, self._button, show_progress="hidden", api_name=False)

    def connect(self, created: Any) -> None:
        """When the line below the picture is there too."""
        if self._button is None:
            return
        line = created.component
        clicked = self._button.click(
            self._decode_again, inputs=[self._gallery], outputs=[self._gallery, line]
        )
        clicked.then(self._update, None, self._button, show_progress="hidden", api_name=False)

    def _update(self) -> Any:
        latest = next(iter(self._guard.kept.items()), None)
        return gr.update(visible=latest is not None and latest.is_approximate)

    def _decode_again(self, gallery: Any) -> tuple[Any, str]:
        """The last generation's pictures, exact, saved and put before those in the gallery."""
        guard = self._guard
        try:
            pictures = decode_again(guard, guard.kept.item(0), lambda made: save(guard, made))
        except InputError as error:
            return gr.update(), _as_html(str(error))
        before = [item["name"] if isinstance(item, dict) else item for item in gallery or []]
        # the host adds a time
        before = [item.split("?")[0] if isinstance(item, str) else item for item in before]
        return [*(image for image, _ in pictures), *before], _as_html(pictures[0][1])


def _as_html(text: str) -> str:
    return "<p>" + "<br>\n".join(map(escape, text.split("\n"))) + "</p>"
