"""The latents of the last generations, so that a picture can be decoded again.

They are in RAM; on disk as well from before the decode until an exact picture is there
(see ``checkpoints.unfinished``).
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vae_lib.catalog import family_of_space
from vae_lib.checkpoints import unfinished
from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.engine import Operation
from vae_lib.errors import InputError
from vae_lib.files import is_gone
from vae_lib.guard import seen
from vae_lib.guard.generation import Generation, Record
from vae_lib.guard.host import Host, HostVAE
from vae_lib.guard.notices import Notices, log
from vae_lib.guard.seen import Looks
from vae_lib.guard.settings import Settings
from vae_lib.networks import TAESD
from vae_lib.planning import Route

HOSTS_OWN = "the WebUI's own decode"


class Kept:
    """One batch of latents that its host has sampled.

    Attributes:
        id: what it is called by, in this run of the host.
        token: what batches of one generation have in common; None: an earlier run's.
        infotexts: one per picture; empty until they are known.
        pictures: what the host made of each picture, where its generation showed it; empty until it is over.
        grid: digests of that of the whole generation, if the host made one.
        route: how it was decoded ("full", ...); None while it is not.
        path: the file it lies in while there is no exact picture of it.
        is_draft: whether its generation asked for TAESD; of an earlier run's nobody knows.
    """

    def __init__(self, latents: Latents, generation: Generation | None, path: Path | None = None) -> None:
        self.id = secrets.token_hex(6)
        self.token, self.path = None if generation is None else generation.token, path
        self.infotexts = list(latents.infotexts)
        self.pictures: list[Looks] = []
        self.grid: frozenset[str] = frozenset()
        self.route: str | None = None
        self.model_name, self.created = latents.model_name, latents.created
        self.shape, self.space = tuple(latents.tensor.shape), latents.space
        self.not_repeated = latents.afterwards.not_repeated
        self.is_draft = generation is not None and generation.request.route is Route.TAESD
        self._latents: Latents | None = latents

    def latents(self) -> Latents:
        """All of it, read from its file if it is not in RAM any more.

        Raises:
            InputError: when the file is gone or cannot be read.
        """
        latents, path = self._latents, self.path  # looked at once: other threads remove files, and free memory
        if latents is None and path is not None and not is_gone(path):
            latents = unfinished.read(path)
        if latents is None:
            raise InputError("These latents are not there any more; their file was removed.")
        return replace(latents, infotexts=self.infotexts)

    @property
    def latents_in_ram(self) -> Latents | None:
        """All of it, unless only its file is left."""
        return self._latents

    def leave_ram(self) -> None:
        """Its file is enough."""
        self._latents = None

    @property
    def is_approximate(self) -> bool:
        """Whether its pictures are TAESD's."""
        return self.route == Route.TAESD.value

    @property
    def is_unfinished(self) -> bool:
        """Whether there is no exact picture of it, and a file to make one of."""
        path = self.path
        return path is not None and not is_gone(path)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is decoded, in pixels."""
        family = family_of_space(self.shape[1], self.space)
        side = self.space.side * (TAESD.downscale if family is None else family.downscale)  # nearly all have TAESD's
        return side * self.shape[-1], side * self.shape[-2]


class KeptLatents:
    """Those of this session, and those that an earlier one did not finish.

    Generations, the page and the API use it at once, each in threads of its own: whoever reads or changes one of the
    two lists holds the lock. Files are written and read without it.
    """

    def __init__(self, host: Host, notices: Notices, settings: Callable[[], Settings]) -> None:
        self._host, self._notices, self._settings = host, notices, settings
        self._lock = threading.Lock()
        self._latest: deque[Kept] = deque()
        self._unfinished: list[Kept] = []  # of which only a file is left

    @property
    def folder(self) -> Path:
        """Where latents lie on disk, below the host's data folder."""
        return self._host.folders().data / "vae-guard-latents"

    def items(self) -> list[Kept]:
        """The kept batches, the latest first; then those of which only a file is left. None that is being decoded."""
        with self._lock:
            self._unfinished = [item for item in self._unfinished if item.is_unfinished]
            return [*self._latest, *self._unfinished]

    def unfinished(self) -> list[Kept]:
        """Those without an exact picture that have a file: what failed, died or was approximated."""
        return [item for item in self.items() if item.is_unfinished]

    def item(self, wanted: str) -> Kept:
        """One of ``items``, by its id.

        Raises:
            InputError: when there is none. Places in the list are no ids: each generation moves them.
        """
        for item in self.items():
            if item.id == wanted:
                return item
        raise InputError(
            f"There are no kept latents {wanted!r}. Use the 'id' that GET /vae-guard/latents lists for them; a place "
            "in the list may be another picture's a moment later."
        )

    def clear(self) -> None:
        """Forget what is in RAM; files stay."""
        with self._lock:
            self._latest.clear()
            self._unfinished.clear()

    def restore(self) -> None:
        """Find what earlier runs did not finish, and say so."""
        read, problems = unfinished.found(self.folder)
        found = [Kept(latents, None, path) for path, latents in read]
        for item in found:
            item.leave_ram()
            if item.path is not None and unfinished.is_approximate(item.path):
                item.route = Route.TAESD.value
        with self._lock:
            self._unfinished += found
        for problem in problems:
            self._notices.tell_once(problem, f"latents that were to be kept cannot be read: {problem}")
        if died := [item for item in found if item.route is None]:
            count = sum(item.shape[0] for item in died)
            self._notices.tell_once(
                f"unfinished {died[0].path}",
                f"{count} picture{'s were' if count > 1 else ' was'} not finished when the WebUI ended; the latents "
                f"are in {self.folder}. Decode or remove them in the tab VAE > Unfinished.",
            )

    def hold(self, generation: Generation, vae: HostVAE, batch: Tensor) -> Kept | None:
        """Keep a batch before it is decoded, so that a failure does not lose it.

        Not the first pass of hires fix: its picture is small, and not the one that was asked for.
        """
        if generation.is_first_pass:
            return None
        settings = self._settings()
        latents = Latents(
            batch.detach().to("cpu", copy=True),
            vae.space,
            vae.model_name,
            self._infotexts(generation.p, len(batch)),
            afterwards=self._afterwards(generation.p),
        )
        held = Kept(latents, generation)
        if settings.disk_mb > 0 and torch.isfinite(latents.tensor).all():
            try:
                held.path = unfinished.write(self.folder, latents, settings.disk_mb)
            except InputError as error:
                self._notices.tell_once(
                    "unfinished",
                    f"the latents could not be saved before the decode: {error} The picture is decoded anyway.",
                )
        return held

    def finished(self, held: Kept | None, generation: Generation, records: Sequence[Record]) -> None:
        """The batch was decoded: note how, and its infotexts."""
        if held is None:
            return
        plans = [record.outcome.plan for record in records if record.operation is Operation.DECODE]
        worst = next((plan for plan in plans if not plan.route.exact), plans[0] if plans else None)
        held.route = HOSTS_OWN if worst is None or generation.fell_to_host else worst.route.value
        held.infotexts = self._infotexts(generation.p, held.shape[0]) or held.infotexts
        if not held.is_approximate:
            self.settle(held)
        elif held.path is not None:
            try:
                held.path = unfinished.mark_approximate(held.path)
            except OSError as error:
                log.warning("%s could not be renamed: %s", held.path, error)
        self._add(held)

    def failed(self, held: Kept | None) -> str:
        """Nothing could decode the batch: say where it is; the sentence for the error ("" if it is nowhere)."""
        if held is None:
            return ""
        self._add(held)
        if held.path is None:
            return ""
        sentence = (
            f"the picture could not be decoded, but it is not lost: its latents are in {held.path}. Free some memory "
            "or choose another VAE, then decode them in the tab VAE > Unfinished."
        )
        self._notices.tell(sentence, warning=True)
        return sentence

    def completed(
        self,
        generation: Generation,
        infotexts: Sequence[str],
        images: Sequence[Image.Image],
        grid: Sequence[Image.Image],
    ) -> None:
        """The generation is over: these are its pictures, and their infotexts, as the host shows them."""
        with self._lock:
            batches = [item for item in reversed(self._latest) if item.token is generation.token]
        if sum(item.shape[0] for item in batches) != len(infotexts):
            return  # the scripts of others added pictures, or left some out
        texts = iter(infotexts)
        for item in batches:
            item.infotexts = [text for _, text in zip(range(item.shape[0]), texts, strict=False)]
        if not any(item.is_approximate for item in batches):
            return  # nothing will ever be put in their place
        made = iter(seen.pictures(infotexts, images))
        for item in batches:
            item.pictures = [picture for _, picture in zip(range(item.shape[0]), made, strict=False)]
            item.grid = seen.digests(grid[0]) if len(grid) == 1 else frozenset()

    def promise(self, held: Kept | None) -> str:
        """How long an approximate picture's latents are kept, as a sentence."""
        keep = self._settings().keep
        if held is not None and held.path is not None:
            return (
                "The latents stay on disk until you have it decoded in full: press 'Decode again in full' below the "
                "picture, or go to the tab VAE > Unfinished."
            )
        if held is not None and keep:
            after = "until the next generation" if keep == 1 else f"for the next {keep} generations"
            return f"The latents are kept {after}: press 'Decode again in full' below the picture."
        return ""

    def remove(self, held: Kept) -> None:
        """Throw a batch away, file and all."""
        self.settle(held)
        with self._lock:
            if held in self._latest:
                self._latest.remove(held)

    def settle(self, held: Kept) -> None:
        """No file is needed any more."""
        with self._lock:
            path, held.path = held.path, None
            if held in self._unfinished:
                self._unfinished.remove(held)
        if path is not None:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._notices.tell_once(f"discard {path}", f"{path} could not be removed: {error.strerror}.")

    def _add(self, held: Kept) -> None:
        keep = self._settings().keep
        with self._lock:
            self._latest.appendleft(held)
            generations = list(dict.fromkeys(item.token for item in self._latest))
            for old in [item for item in self._latest if item.token in generations[keep:]]:
                self._latest.remove(old)
                if old.path is not None:
                    old.leave_ram()
                    self._unfinished.insert(0, old)

    def _afterwards(self, p: Any) -> Afterwards:
        try:
            return self._host.afterwards(p)
        except Exception as error:  # whatever extensions have made of it
            log.warning("what follows the decode could not be noted: %s", error)
            return Afterwards()

    def _infotexts(self, p: Any, count: int) -> list[str]:
        try:
            return self._host.infotexts(p, count)
        except Exception as error:  # other extensions' entries may fail; the latents matter more
            log.warning("no infotext for the kept latents: %s", error)
            return []
