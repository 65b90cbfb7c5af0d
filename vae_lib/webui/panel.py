"""The accordion in txt2img and img2img: how this generation is to be decoded."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.context import Context

from vae_lib.errors import InputError
from vae_lib.guard import Guard, infotext, request
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.webui.again_button import AgainButton
from vae_lib.webui.host import WebUI

TITLE = "VAE Guard"
FALLBACK = (
    "If the VAE needs more memory than is free, decode in tiles, in tiles kept in RAM, on the CPU, or at last with "
    'TAESD. Off: only what "Decode by" says is used, even if memory runs out'
)
DECODE_BY = (
    "How this picture is decoded. Auto: in full if that fits in the free memory, else as Settings > VAE Guard says. "
    "Every route but TAESD gives the same picture"
)
THRESHOLD = (
    "With less free memory (VRAM on a GPU) than this, the full decode is skipped. 0: as Settings > VAE Guard "
    "says, by default whenever the picture would not fit"
)


def script_class(guard: Guard, host: WebUI) -> type:
    """The script of this host: always there, collapsed to one line."""

    class VAEGuardScript(host.script_class):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.on_after_component_elem_id = [
                *AgainButton(guard, host).wanted(),
                *((f"generation_info_{tab}", self._show_last) for tab in ("txt2img", "img2img")),
            ]

        def title(self) -> str:
            return TITLE

        def show(self, is_img2img: bool) -> object:
            return host.always_visible

        def ui(self, is_img2img: bool) -> list[Any]:
            default = request.Request()
            tab = "img2img" if is_img2img else "txt2img"
            with gr.Accordion(TITLE, open=False, elem_id=f"{tab}_vae_guard") as self._header, gr.Row():
                fallback = gr.Checkbox(
                    default.fallback, label="Fall back if memory is short", elem_id=self.elem_id("fallback"),
                    min_width=120,
                )  # fmt: skip
                decode_by = gr.Dropdown(
                    list(request.DECODE_BY), value=default.decode_by, label="Decode by",
                    elem_id=self.elem_id("decode_by"), min_width=120,
                )  # fmt: skip
                threshold = gr.Number(
                    default.threshold, label="Least free GB for a full decode (0: see Settings)",
                    elem_id=self.elem_id("threshold"), min_width=120,
                )  # fmt: skip  # limits would be gradio's to report, by a traceback
            for control, text in ((fallback, FALLBACK), (decode_by, DECODE_BY), (threshold, THRESHOLD)):
                hinted(control, text)
            # It has no effect without the fallback, which the host's own defaults may switch off.
            for event in (fallback.change, *([Context.root_block.load] if Context.root_block else [])):
                event(lambda falls_back: gr.update(interactive=falls_back), fallback, threshold, **QUIET)
            fields = (
                (fallback, infotext.pasted_fallback, "vae_guard_fallback"),
                (decode_by, infotext.pasted_decode_by, "vae_guard_decode_by"),
                (threshold, infotext.pasted_threshold, "vae_guard_threshold"),
            )
            self.infotext_fields = [host.paste_field(*field) for field in fields]
            self.paste_field_names = [pasted for _, pasted, _ in fields]  # what "Send to img2img" takes along
            return [fallback, decode_by, threshold]

        def _show_last(self, created: Any) -> None:
            """What the last decode did, in the panel's header, once the gallery holds another picture.

            (Of this text gradio tells changes only; of an HTML, gradio 4 tells every update of the page.)
            """
            created.component.change(
                lambda: gr.update(label=header(guard)), None, self._header, **QUIET
            )  # fmt: skip

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


def header(guard: Guard) -> str:
    """The panel's title, with what was done for the last picture."""
    done = guard.last_decode
    return f"{TITLE}: last decode {done}" if done else TITLE
