"""Below the picture: "Decode again in full" whenever a picture in the gallery is only an approximation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from vae_lib.errors import VAEGuardError
from vae_lib.guard import Guard, Kept, decode_again, not_repeated, seen
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.versions import with_javascript
from vae_lib.webui.host import WebUI

TABS = ("txt2img", "img2img")
_PARTS = ("{tab}_gallery", "generation_info_{tab}", "html_info_{tab}", "html_log_{tab}")

Places = list[int | None]  # in the gallery, for each picture of a batch

_PUT_TOGETHER = (
    "A script has put this together of pictures that TAESD decoded, so it cannot be replaced. What it is made of can "
    "be decoded exactly in VAE > Unfinished."
)


class AgainButton:
    """Of one tab: puts every picture that is not exact right, at its own place and with its own infotext.

    A picture is recognised by its pixels, so that nothing else is ever replaced: no grid of a script's, no mask, no
    picture that was made of several.
    """

    def __init__(self, guard: Guard, host: WebUI) -> None:
        self._guard, self._host = guard, host
        self._parts: dict[str, Any] = {}
        self._button: Any = None
        self._note: Any = None

    def wanted(self) -> list[tuple[str, Callable[[Any], None]]]:
        """The host's components to ask for when they are made: elem_id and callback."""
        return [(part.format(tab=tab), partial(self._made, part, tab)) for tab in TABS for part in _PARTS]

    def _made(self, part: str, tab: str, made: Any) -> None:
        if part == _PARTS[0]:
            self._button = gr.Button("Decode again in full", visible=False, elem_id=f"{tab}_vae_guard_again")
            hinted(
                self._button,
                "Puts the exact picture in the place of TAESD's approximation, from the kept latents",
            )
            self._note = gr.HTML(visible=False, elem_id=f"{tab}_vae_guard_again_note")
        self._parts[part] = made.component
        if self._button is not None and all(part in self._parts for part in _PARTS):
            self._connect(tab)

    def _connect(self, tab: str) -> None:
        parts = gallery, info, *_ = [self._parts[part] for part in _PARTS]

        def decode(*given: Any) -> Any:
            return self._decode_again(tab, *given)

        self._button.click(
            fn=self._host.gpu_call(decode, extra_outputs=[gr.update()] * 3),
            inputs=[self._button, gallery, info, self._button],  # the script puts a task and the selection in
            outputs=parts,
            show_progress="hidden",
            **with_javascript(f"vaeGuardAgain_{tab}"),
        )
        info.change(self._update, [gallery, info], [self._button, self._note], **QUIET)

    def _update(self, gallery: Any, info: str) -> list[Any]:
        texts, _ = _read(info)
        found = self._approximate(self._shown_in(gallery))
        missed = not found and any(
            item.is_approximate and not set(item.infotexts).isdisjoint(texts) for item in self._guard.kept.items()
        )
        note = f"<p>{escape(_PUT_TOGETHER)}</p>" if missed else ""
        return [gr.update(visible=bool(found)), gr.update(visible=missed, value=note)]

    def _shown_in(self, gallery: Any) -> list[Any]:
        """The pictures of a gallery, or their files: those that the page has from the host, for a page may name any."""
        items = [_path(item) for item in gallery or []]
        return [
            item.split("?")[0] if isinstance(item, str) else item  # the host adds a time to its files' names
            for item in items
            if not isinstance(item, str) or self._host.has_served(item)
        ]

    def _approximate(self, shown: Sequence[Any]) -> list[tuple[Kept, Places]]:
        """Kept batches of which approximations are in the gallery, in its order, and where."""
        items = [item for item in self._guard.kept.items() if item.is_approximate and any(item.pictures)]
        free = dict(enumerate(map(seen.digest, shown if items else ())))
        found: list[tuple[Kept, Places]] = []
        for item in items:
            places: Places = []
            for looks in item.pictures:
                place = next((place for place, digest in free.items() if digest in looks), None)
                if place is not None:
                    del free[place]
                places.append(place)
            if any(place is not None for place in places):
                found.append((item, places))
        return sorted(found, key=lambda each: min(place for place in each[1] if place is not None))

    def _decode_again(
        self, tab: str, id_task: str, gallery: Any, info: str, selected: Any
    ) -> tuple[Any, Any, Any, str]:
        """The gallery with exact pictures, its generation info, the infotext shown, and a line below it."""
        texts, first = _read(info)
        pictures = self._shown_in(gallery)
        found = self._approximate(pictures)
        said, exact, done = "", dict[int, Image.Image](), list[str]()
        for item, places in found:
            before = list(item.infotexts)
            try:
                made = decode_again(self._guard, item, cancelled=self._host.is_interrupted)
            except VAEGuardError as error:
                said = f"<div class='error'>{escape(str(error))}</div>"
                break
            for place, (image, text), old in zip(places, made, before, strict=False):
                if place is None:
                    continue
                exact[place] = _with_infotext(image, text)
                done.append(text)
                if len(texts) == len(pictures):
                    texts[place] = text
                elif old in texts[first:]:  # masks have none, so these are not at the pictures' places
                    texts[texts.index(old, first)] = text
        said += f"<p>{escape(_line(len(done), [item for item, _ in found]))}</p>" if done else ""
        if self._is_whole(first, pictures, exact, found):
            grid = self._host.grid([exact[place] for place in sorted(exact)], found[0][0].shape[0], done[0], tab)
            exact[0], texts[0] = grid, done[0]
        elif exact and len(exact) < len(pictures):
            said += "<p>The other pictures in the gallery are as they were.</p>"
        if not found:
            said = "<p>There is nothing in this gallery to decode again: every picture is exact.</p>"
        if not done:
            return gr.update(), gr.update(), gr.update(), said
        now = [exact.get(place, picture) for place, picture in enumerate(pictures)]
        changed = json.dumps({**json.loads(info or "{}"), "infotexts": texts})
        at = int(selected) if str(selected).isdecimal() else -1
        shown = self._host.shown_infotext(texts[at] if 0 <= at < len(texts) else done[0])
        return now, changed, shown, said

    @staticmethod
    def _is_whole(
        first: int, shown: Sequence[Any], exact: Mapping[int, Any], found: Sequence[tuple[Kept, Places]]
    ) -> bool:
        """Whether the first picture is the host's own grid of pictures that are all exact now."""
        is_grid = first == 1 and len(exact) == len(shown) - 1 and bool(found)
        return is_grid and seen.digest(shown[0]) in found[0][0].grid


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
    """Of a picture in the gallery; the picture itself where it is there."""
    item = item[0] if isinstance(item, (list, tuple)) else item
    if isinstance(item, dict):
        item = item.get("name") or item.get("path") or item.get("image")
        item = item.get("path") if isinstance(item, dict) else item
    return item


def _with_infotext(image: Image.Image, text: str) -> Image.Image:
    image.info.setdefault("parameters", text)
    return image
