"""Pictures that are not there, or not exactly: nothing could decode them, the process died in it, or TAESD did it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from vae_lib.errors import VAEGuardError
from vae_lib.ui import markup
from vae_lib.ui.backend import Finished, Unfinished, UnfinishedList
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.versions import LOSSLESS

PICK = "vg_pick_unfinished"
_WHAT = (
    "Latents of pictures that are not there, or not exact: their decode failed, the WebUI ended in it, or TAESD made "
    "the picture. Those that you chose TAESD for are at the end. Click on a time to choose it; several can be chosen."
)
_NONE = (
    "Every picture is there, and exact. Latents are saved before each decode; if it fails, if the WebUI dies in it, or "
    "if TAESD has to stand in, they are listed here."
)
_REMOVE, _REMOVE_ALL = "Remove", "Remove all"
_SURE = "Remove for good"
_BOXES = ("☐", "☑")


class UnfinishedSection:
    """A list of them; "Decode now" for those that are chosen and "Decode all", which can be stopped; "Remove" and
    "Remove all", asked once.

    Attributes:
        outputs: the components that ``show`` fills.
    """

    def __init__(self, unfinished: UnfinishedList) -> None:
        self._unfinished = unfinished
        self.said = gr.HTML(elem_id="vg_unfinished_said")
        with gr.Row(variant="compact"):
            self.go = gr.Button("Decode now", variant="primary", size="sm", elem_id="vg_finish", min_width=120)
            self.all = gr.Button("Decode all", size="sm", elem_id="vg_finish_all", min_width=100)
            self.stop = gr.Button(
                "Stop", variant="stop", size="sm", visible=False, elem_id="vg_finish_stop", min_width=80
            )
            self.remove = gr.Button(_REMOVE, size="sm", elem_id="vg_unfinished_remove", min_width=80)
            self.remove_all = gr.Button(_REMOVE_ALL, size="sm", elem_id="vg_unfinished_remove_all", min_width=80)
        self.vae_in_use = gr.Checkbox(
            False, label="With the VAE in use now", elem_id="vg_unfinished_vae_in_use", container=False
        )
        self.gallery = gr.Gallery(
            label="Pictures", columns=2, object_fit="contain", visible=False, elem_id="vg_finished", **LOSSLESS
        )
        self.table = gr.HTML(elem_id="vg_unfinished_table")
        self.pick = gr.CheckboxGroup(choices=[], elem_id=PICK, elem_classes="vg-hidden")
        self.report = gr.Textbox(
            label="VAE Guard failed and the WebUI's own code was used. Please report it with this text:",
            lines=6, max_lines=20, interactive=False, show_copy_button=True, visible=False, elem_id="vg_report",
        )  # fmt: skip
        self.outputs = [
            self.said, self.table, self.pick, self.go, self.all, self.stop, self.remove, self.remove_all,
            self.vae_in_use, self.report,
        ]  # fmt: skip
        hinted(self.go, "Decode what is chosen exactly, and save the pictures among the others")
        hinted(self.all, "Decode all in the list, one after the other")
        hinted(self.stop, "End the decode; what is not decoded yet stays in the list")
        hinted(self.remove, "Throw the chosen latents away")
        hinted(self.remove_all, "Throw all latents in the list away")
        hinted(self.vae_in_use, "Instead of the VAE that their generation had, which may be gone")
        self.pick.input(self.refresh, self.pick, self.outputs, **QUIET)
        self.go.click(self._finish, [self.pick, self.vae_in_use], [*self.outputs, self.gallery], **QUIET)
        self.all.click(self._finish_all, self.vae_in_use, [*self.outputs, self.gallery], **QUIET)
        self.stop.click(unfinished.stop, None, None, queue=False, **QUIET)
        self.remove.click(self._remove, [self.pick, self.remove], self.outputs, **QUIET)
        self.remove_all.click(self._remove_all, self.remove_all, self.outputs, **QUIET)

    def show(self) -> list[Any]:
        """The list as it is now, with nothing chosen."""
        return self._shown("")

    def refresh(self, chosen: Sequence[str] | None) -> list[Any]:
        """The list as it is now."""
        return self._shown("", chosen or ())

    def _shown(self, said: str, chosen: Sequence[str] = (), *, is_busy: bool = False, asks: str = "") -> list[Any]:
        """The only one in the list needs no choice."""
        items = list(self._unfinished.listed())
        keys = [item.key for item in items]
        chosen = [key for key in keys if key in chosen or len(keys) == 1]
        report, some = self._unfinished.report(), bool(items)
        one, every = (_SURE if asks == label else label for label in (_REMOVE, _REMOVE_ALL))
        return [
            said or (markup.note(_WHAT) if some else ""),
            _table(items, chosen),
            gr.update(choices=keys, value=chosen),
            gr.update(visible=some and not is_busy, interactive=bool(chosen)),
            gr.update(visible=len(items) > 1 and not is_busy),
            gr.update(visible=is_busy),
            gr.update(visible=some and not is_busy, interactive=bool(chosen), value=one),
            gr.update(visible=len(items) > 1 and not is_busy, value=every),
            gr.update(visible=some and not is_busy),
            gr.update(value=report, visible=bool(report)),
        ]

    def _finish_all(self, vae_in_use: bool) -> Iterator[list[Any]]:
        yield from self._finish(self._all(), vae_in_use)

    def _finish(self, keys: Sequence[str], vae_in_use: bool) -> Iterator[list[Any]]:
        said, pictures, kind = "", [], ""
        try:
            busy = self._shown("", keys, is_busy=True)
            for step in self._unfinished.finish(keys, bool(vae_in_use)):
                if isinstance(step, Finished):
                    said, pictures, kind = step.said, list(step.pictures), "" if step.is_good else "bad"
                else:
                    text = markup.page(f"<p>{escape(step)}</p>{markup.progress(None)}")
                    yield [text, *busy[1:], gr.update()]
        except VAEGuardError as error:
            said, kind = str(error), "bad"
        gallery = gr.update(value=pictures, visible=True) if pictures else gr.update()
        yield [*self._shown(markup.note(said, kind)), gallery]

    def _all(self) -> list[str]:
        return [item.key for item in self._unfinished.listed()]

    def _remove(self, keys: Sequence[str], label: str) -> list[Any]:
        which = "What is chosen" if len(keys) == 1 else f"The {len(keys)} that are chosen"
        return self._discard(keys, label, _REMOVE, which)

    def _remove_all(self, label: str) -> list[Any]:
        keys = self._all()
        return self._discard(keys, label, _REMOVE_ALL, f"All {len(keys)}")

    def _discard(self, keys: Sequence[str], label: str, asks: str, which: str) -> list[Any]:
        if label != _SURE:
            asked = f"{which} will be deleted, and cannot be decoded any more. Press again to do so."
            return self._shown(markup.note(asked, "warn"), keys if asks == _REMOVE else (), asks=asks)
        try:
            for key in keys:
                self._unfinished.discard(key)
        except VAEGuardError as error:
            return self._shown(markup.note(str(error), "bad"))
        return self._shown(markup.note("Removed."))


def _table(items: Sequence[Unfinished], chosen: Sequence[str]) -> str:
    rows = []
    numbers = [index for index, item in enumerate(items) if item.key in chosen]
    for index, item in enumerate(items):
        time, *rest = item.details.values()
        said = "TAESD, as chosen" if item.is_draft else "approximate" if item.is_approximate else "not decoded"
        state = markup.chip(said, on=not item.is_approximate)
        picked = f"{markup.pick_button(PICK, index, f'{_BOXES[index in numbers]} {time}')} {state}"
        wide = [name == "Prompt" for name in list(item.details)[1:]]
        cells = [(escape(text), "vg-wide" if is_wide else "") for text, is_wide in zip(rest, wide, strict=True)]
        rows.append([(picked, ""), (_thumbnail(item.preview()), ""), *cells])
    names = list(items[0].details) if items else [""]
    return markup.table([names[0], "Preview", *names[1:]], rows, numbers, _NONE, is_broad=True)


def _thumbnail(image: Image.Image | None) -> str:
    if image is None:
        return ""
    image = image.copy()
    image.thumbnail((96, 96))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="rough preview" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
