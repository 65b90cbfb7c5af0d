"""Below the picture: "Decode again in full" whenever a picture in the gallery is only an approximation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from vae_lib.errors import VAEGuardError
from vae_lib.guard import Guard, Kept, decode_again, not_repeated
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.versions import with_javascript
from vae_lib.webui.host import WebUI

TABS = ("txt2img", "img2img")
_PARTS = ("{tab}_gallery", "generation_info_{tab}", "html_info_{tab}", "html_log_{tab}")

Places = list[int | None]  # in the gallery, for each picture of a batch


class AgainButton:
    """Of one tab: puts every picture that is not exact right, at its own place and with its own infotext."""

    def __init__(self, guard: Guard, host: WebUI) -> None:
        self._guard, self._host = guard, host
        self._parts: dict[str, Any] = {}
        self._button: Any = None

    def wanted(self) -> list[tuple[str, Callable[[Any], None]]]:
        """The host's components to be told of when they are made: elem_id and callback."""
        return [(part.format(tab=tab), partial(self._made, part, tab)) for tab in TABS for part in _PARTS]

    def _made(self, part: str, tab: str, made: Any) -> None:
        if part == _PARTS[0]:
            self._button = gr.Button("Decode again in full", visible=False, elem_id=f"{tab}_vae_guard_again")
            hinted(
                self._button,
                "Puts the exact picture in the place of TAESD's approximation, from the kept latents",
            )
        self._parts[part] = made.component
        if self._button is not None and all(part in self._parts for part in _PARTS):
            self._connect(tab)

    def _connect(self, tab: str) -> None:
        parts = gallery, info, *_ = [self._parts[part] for part in _PARTS]
        self._button.click(
            fn=self._host.gpu_call(self._decode_again, extra_outputs=[gr.update()] * 3),
            inputs=[self._button, gallery, info],
            outputs=parts,
            show_progress="hidden",
            **with_javascript(f"vaeGuardAgain_{tab}"),
        )
        info.change(self._update, info, self._button, **QUIET)

    def _update(self, info: str) -> Any:
        return gr.update(visible=bool(self._approximate(*_read(info))))

    def _approximate(self, texts: Sequence[str], first: int) -> list[tuple[Kept, Places]]:
        """Kept batches of which approximations are in the gallery, in its order, and where: told by their infotexts."""
        free = dict.fromkeys(range(first, len(texts)))
        found: list[tuple[Kept, Places]] = []
        for item in self._guard.kept.items():
            if not item.is_approximate:
                continue
            places: Places = []
            for text in item.infotexts:
                place = next((place for place in free if texts[place] == text), None)
                if place is not None:
                    del free[place]
                places.append(place)
            if any(place is not None for place in places):
                found.append((item, places))
        return sorted(found, key=lambda each: min(place for place in each[1] if place is not None))

    def _decode_again(self, id_task: str, gallery: Any, info: str) -> tuple[Any, str, str, str]:
        """The gallery with exact pictures, its generation info, the infotext shown, and a line below it."""
        texts, first = _read(info)
        found = self._approximate(texts, first)
        pictures: list[Any] = [_path(item) for item in gallery or []]
        shown, said, done = "", "", 0
        exact: dict[int, Image.Image] = {}
        for item, places in found:
            try:
                made = decode_again(self._guard, item)
            except VAEGuardError as error:
                said = f"<div class='error'>{escape(str(error))}</div>"
                break
            for place, (image, text) in zip(places, made, strict=False):
                done += 1
                if place is not None and place < len(pictures):
                    exact[place], texts[place] = _shown(image, text), text
                    shown = shown or text
        if first == 1 and len(exact) == len(texts) - 1:  # the grid before them is of approximations as well
            grid = self._host.grid([exact[place] for place in sorted(exact)], found[0][0].shape[0])
            exact[0], texts[0] = _shown(grid, shown), shown
        pictures = [exact.get(place, picture) for place, picture in enumerate(pictures)]
        said += f"<p>{escape(_line(done, [item for item, _ in found]))}</p>" if done else ""
        if not found:
            said = "<p>There is nothing in this gallery to decode again: every picture is exact.</p>"
        changed = json.dumps({**json.loads(info or "{}"), "infotexts": texts}) if done else gr.update()
        return pictures if done else gr.update(), changed, _as_html(shown) if done else gr.update(), said


def _line(done: int, items: Sequence[Kept]) -> str:
    several = f"{done} pictures were" if done > 1 else "The picture was"
    return f"{several} decoded again in full. {not_repeated(items)}".strip()


def _read(info: str) -> tuple[list[str], int]:
    """Infotexts of the gallery's pictures, and which of them is the first that is no grid."""
    try:
        read = json.loads(info)
        return [str(text) for text in read["infotexts"]], int(read["index_of_first_image"])
    except (TypeError, ValueError, KeyError):
        return [], 0


def _path(item: Any) -> Any:
    """Of a picture in the gallery; the host adds a time to its files' names."""
    item = item[0] if isinstance(item, (list, tuple)) else item
    if isinstance(item, dict):
        item = item.get("name") or item.get("path") or item.get("image")
        item = item.get("path") if isinstance(item, dict) else item
    return item.split("?")[0] if isinstance(item, str) else item


def _shown(image: Image.Image, text: str) -> Image.Image:
    image.info.setdefault("parameters", text)
    return image


def _as_html(text: str) -> str:
    return "<p>" + "<br>\n".join(map(escape, text.split("\n"))) + "</p>"
