"""Pictures without an exact decode, as the tab lists and finishes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import torch
from PIL import Image

from vae_lib.errors import Cancelled, InputError, VAEGuardError
from vae_lib.guard import Guard, Kept, decode_again, infotext, not_repeated
from vae_lib.ui.backend import Finished, Unfinished

MOST_LISTED = 100
PREVIEW = 32  # latents a side at most: a picture of 256 pixels is decoded in a moment
_SECONDS = 0.3  # between two looks at how far it is


class UnfinishedPictures:
    """Implements ``UnfinishedList``."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._stop = threading.Event()
        self._previews: dict[str, Image.Image | None] = {}  # of those listed last, by id

    def listed(self) -> list[Unfinished]:
        """The newest first, behind them those that were wanted by TAESD, and not more than anyone would read."""
        items = sorted(self._guard.kept.unfinished(), key=_is_draft)[:MOST_LISTED]
        ids = {item.id for item in items}
        self._previews = {key: made for key, made in self._previews.items() if key in ids}
        return [
            Unfinished(item.id, item.is_approximate, _is_draft(item), details(item), partial(self._preview, item))
            for item in items
        ]

    def discard(self, key: str) -> None:
        self._guard.kept.remove(self._item(key))

    def stop(self) -> None:
        self._stop.set()

    def report(self) -> str:
        return self._guard.notices.last_report()

    def finish(self, keys: Sequence[str], vae_in_use: bool) -> Iterator[str | Finished]:
        """Decode batches in a thread, and say how far it is meanwhile."""
        items = [self._item(key) for key in keys]
        self._stop.clear()
        place = [0]
        with ThreadPoolExecutor(1, "vae-guard-finish") as pool:
            work = pool.submit(self._run, items, place, vae_in_use)
            while not work.done():
                text = self._guard.host.progress_text() or "working"
                of = f"{place[0] + 1} of {len(items)}: " if len(items) > 1 else ""
                yield f"{of}{text.removeprefix('VAE Guard: ')}"
                time.sleep(_SECONDS)
            yield work.result()

    def _run(self, items: Sequence[Kept], place: list[int], vae_in_use: bool) -> Finished:
        pictures: list[Image.Image] = []
        for place[0], item in enumerate(items):
            try:
                with self._guard.host.job("VAE Guard"):
                    made = decode_again(
                        self._guard, item, saved=True, cancelled=self._stop.is_set, vae_in_use=vae_in_use
                    )
            except Cancelled:
                return Finished(pictures, "Stopped. What was not decoded is still in the list.", False)
            except VAEGuardError as error:
                return Finished(pictures, str(error), False)
            pictures += [image for image, _ in made]
        said = f"Decoded, and saved with the other pictures. {not_repeated(items)}".strip()
        return Finished(pictures, said, True)

    def _item(self, key: str) -> Kept:
        for item in self._guard.kept.unfinished():
            if item.id == key:
                return item
        raise InputError("These latents are not there any more; the list is up to date again.")

    def _preview(self, item: Kept) -> Image.Image | None:
        """Made once, for each look at the list shows all of them."""
        if item.id not in self._previews:
            self._previews[item.id] = self._made_preview(item)
        return self._previews[item.id]

    def _made_preview(self, item: Kept) -> Image.Image | None:
        try:
            latents = item.latents().tensor[:1].float()  # (1, C, h, w)
        except VAEGuardError:
            return None
        step = -(-max(latents.shape[-2:]) // PREVIEW)
        small = torch.nn.functional.avg_pool2d(latents, step, ceil_mode=True) if step > 1 else latents
        return self._guard.preview(small, item.space)


def _is_draft(item: Kept) -> bool:
    return item.is_draft and item.is_approximate


def details(item: Kept) -> dict[str, str]:
    """What tells a batch from others, by name, the shortest first; an older one's time is with its day."""
    created = item.created.astimezone()
    day = "" if created.date() == datetime.now().date() else f"{created:%Y-%m-%d} "
    several = f"{item.shape[0]} x " if item.shape[0] > 1 else ""
    prompt, seeds = infotext.prompt_and_seeds(item.infotexts)
    return {
        "Time": f"{day}{created:%H:%M:%S}",
        "Size": f"{several}{item.size[0]}x{item.size[1]}",
        "Checkpoint": item.model_name,
        "Seed": seeds,
        "Prompt": prompt,
    }
