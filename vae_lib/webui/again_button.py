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
from vae_lib.guard import Guard, Kept, decode_again, infotext, not_repeated, seen
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.versions import with_javascript
from vae_lib.webui.host import WebUI

TABS = ("txt2img", "img2img")
_PARTS = ("{tab}_gallery", "generation_info_{tab}", "html_info_{tab}", "html_log_{tab}")

Places = list[int | None]  # in the gallery, for each picture of a batch; None: not by itself

_PUT_TOGETHER = (
    "A script has blended this of pictures that TAESD decoded, so it cannot be replaced. What it is made of can be "
    "decoded exactly in VAE > Unfinished."
)


class AgainButton:
    """Of one tab: puts every picture that is not exact right, at its own place and with its own infotext.

    A picture is recognised by its pixels, so that nothing else is ever replaced: no mask, and nothing that a script
    made of several that overlap. Where they lie in that as they were, as in grids, the exact ones are laid over them.
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
        shown = self._shown_in(gallery)
        found = self._approximate(shown, texts)
        missed = bool(shown and not found) and self._is_blended(texts, found)
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

    def _approximate(self, shown: Sequence[Any], texts: Sequence[str]) -> list[tuple[Kept, Places]]:
        """Kept batches of which approximations are in the gallery, in its order, and where.

        Behind them those of which some are only in what a script put together, in the order of their generations.
        """
        items = [item for item in self._guard.kept.items() if item.is_approximate and item.pictures]
        free = dict(enumerate(map(seen.digest, shown if items else ())))
        named = dict(enumerate(texts if len(texts) == len(shown) else ()))
        found: list[tuple[Kept, Places]] = []
        for item in items:
            places: Places = []
            for looks, text in zip(item.pictures, item.infotexts, strict=False):
                same = [place for place, digest in free.items() if digest in looks.digests]
                place = next((place for place in same if named.get(place) == text), next(iter(same), None))
                if place is not None:
                    del free[place]
                places.append(place)
            if any(place is not None for place in places):
                found.append((item, places))
        found.sort(key=lambda each: min(place for place in each[1] if place is not None))
        alone = [item for item, _ in found]
        left = [item for item in reversed(items) if item not in alone]
        wholes = list(filter(None, (seen.opened(shown[place]) for place in free))) if left else []
        within: list[tuple[Kept, Places]] = [
            (item, [None] * len(item.pictures))
            for item in left
            if any(seen.place_in(whole, looks) for whole in wholes for looks in item.pictures)
        ]
        return found if self._is_blended(texts, [*found, *within]) else [*found, *within]

    def _is_blended(self, texts: Sequence[str], found: Sequence[tuple[Kept, Places]]) -> bool:
        """Whether the gallery has an infotext of TAESD's picture, and the picture nowhere as it was.

        Then a script has made one of several that overlap, and there would be both in it: exact ones, and TAESD's.
        """
        known = {looks for item, _ in found for looks in item.pictures}
        return any(
            item.is_approximate
            and not set(item.infotexts).isdisjoint(texts)
            and not (item.pictures and known.issuperset(item.pictures))  # the same may have been generated twice
            for item in self._guard.kept.items()
        )

    def _decode_again(
        self, tab: str, id_task: str, gallery: Any, info: str, selected: Any
    ) -> tuple[Any, Any, Any, str]:
        """The gallery with exact pictures, its generation info, the infotext shown, and a line below it."""
        texts, first = _read(info)
        pictures = self._shown_in(gallery)
        found = self._approximate(pictures, texts)
        is_blended = self._is_blended(texts, found)
        said, exact, done, parts = "", dict[int, Image.Image](), list[str](), list[tuple[seen.Looks, Image.Image]]()
        for item, places in found:
            before = list(item.infotexts)
            try:
                made = decode_again(self._guard, item, cancelled=self._host.is_interrupted)
            except VAEGuardError as error:
                said = f"<div class='error'>{escape(str(error))}</div>"
                break
            if not is_blended:
                parts += zip(item.pictures, (image for image, _ in made), strict=False)
            for place, (image, text), old in zip(places, made, before, strict=False):
                done.append(text)
                if place is None:
                    continue
                exact[place] = _with_infotext(image, text)
                if len(texts) == len(pictures):
                    texts[place] = text
                elif old in texts[first:]:  # masks have none, so these are not at the pictures' places
                    texts[texts.index(old, first)] = text
        said += f"<p>{escape(_line(len(done), [item for item, _ in found]))}</p>" if done else ""
        if self._is_whole(first, pictures, exact, found):
            grid = self._host.grid([exact[place] for place in sorted(exact)], found[0][0].shape[0], done[0], tab)
            exact[0], texts[0] = grid, done[0]
        for place in sorted(set(range(len(pictures))).difference(exact)):
            if (whole := _with_parts(pictures[place], parts)) is None:
                continue
            text = done[0]
            if len(texts) == len(pictures) or place < min(first, len(texts)):
                text = texts[place] = infotext.replaced(texts[place], str(found[0][0].route), {})
            exact[place] = self._host.grid([whole], 1, text, tab)
        if exact and len(exact) < len(pictures):
            said += "<p>The other pictures in the gallery are as they were.</p>"
        if not found:
            said = "<p>There is nothing in this gallery to decode again: every picture is exact.</p>"
        if not done:
            return gr.update(), gr.update(), gr.update(), said
        now = [exact.get(place, picture) for place, picture in enumerate(pictures)]
        changed = json.dumps({**json.loads(info or "{}"), "infotexts": texts})
        at = int(selected) if str(selected).isdecimal() else -1
        at = at if 0 <= at < len(texts) else 0
        shown = self._host.shown_infotext(texts[at] if at or (texts and 0 in exact) else done[0])
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


def _with_parts(shown: Any, parts: Sequence[tuple[seen.Looks, Image.Image]]) -> Image.Image | None:
    """What a script put together, with the exact pictures in it; None where none of them is."""
    whole, is_changed = seen.opened(shown) if parts else None, False
    if whole is None:
        return None
    for looks, image in parts:
        if image.size != looks.size or seen.digest(image) in looks.digests:
            continue
        while (place := seen.place_in(whole, looks)) is not None:
            whole.paste(image.convert("RGB"), place)
            is_changed = True
    return whole if is_changed else None


def _with_infotext(image: Image.Image, text: str) -> Image.Image:
    image.info.setdefault("parameters", text)
    return image
