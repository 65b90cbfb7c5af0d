"""The latents of the last generations, so that a picture can be decoded again.

They are in RAM; on disk as well from before the decode until the picture is there (see ``checkpoints.unfinished``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_lib.checkpoints import unfinished
from vae_lib.decode import Operation, Route
from vae_lib.errors import InputError
from vae_lib.guard.generation import Generation, Record
from vae_lib.guard.host import Host, HostVAE
from vae_lib.guard.notices import Notices, log
from vae_lib.guard.settings import Settings

HOSTS_OWN = "the WebUI's own decode"


@dataclass(eq=False)  # one batch is another's equal only if it is the same: tensors have no truth value
class Kept:
    """One batch of latents as the sampler left it.

    Attributes:
        latents: (B, C, h, w), scaled, on the CPU.
        infotexts: one per picture; empty until they are known.
        route: how it was decoded ("full", ...); None while it is not.
        scale_factor: the model's, to tell whether another model's VAE takes these latents.
        path: the file they lie in while there is no picture of them.
    """

    latents: Tensor
    model_name: str
    scale_factor: float
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    infotexts: list[str] = field(default_factory=list)
    route: str | None = None
    path: Path | None = None

    @property
    def is_approximate(self) -> bool:
        """Whether its pictures are TAESD's."""
        return self.route == Route.TAESD.value

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]


class KeptLatents:
    """Those of this session, and those that an earlier one did not finish."""

    def __init__(self, host: Host, notices: Notices, settings: Callable[[], Settings]) -> None:
        self._host, self._notices, self._settings = host, notices, settings
        self._latest: deque[Kept] = deque()
        self._unfinished: list[Kept] = []

    @property
    def folder(self) -> Path:
        """Where latents lie on disk, below the host's data folder."""
        return self._host.folders().data / "vae-guard-latents"

    def items(self) -> list[Kept]:
        """The kept batches, the latest first; then those that an earlier run did not finish."""
        return [*self._latest, *self._unfinished]

    def item(self, index: int) -> Kept:
        """One of ``items``.

        Raises:
            InputError: when there are not so many.
        """
        kept = self.items()
        if not 0 <= index < len(kept):
            raise InputError(
                f"There are no kept latents number {index}; {len(kept)} are kept (Settings > VAE Guard sets how many)."
            )
        return kept[index]

    def clear(self) -> None:
        """Forget what is in RAM; files stay."""
        self._latest.clear()
        self._unfinished.clear()

    def restore(self) -> None:
        """Find what an earlier run did not finish, and say so."""
        found, problems = unfinished.found(self.folder)
        self._unfinished[:] = [
            Kept(one.latents, one.model_name, one.scale_factor, one.created, one.infotexts, path=one.path)
            for one in found
        ]
        for problem in problems:
            self._notices.tell_once(problem, f"latents that were to be kept cannot be read: {problem}")
        if found:
            count = sum(len(one.latents) for one in found)
            self._notices.tell_once(
                f"unfinished {found[0].path}",
                f"{count} picture{'s were' if count > 1 else ' was'} not finished when the WebUI ended; the latents "
                f"are in {self.folder}. Decode or remove them in the tab VAE > Unfinished.",
            )

    def hold(self, generation: Generation, vae: HostVAE, batch: Tensor) -> Kept | None:
        """Keep a batch before it is decoded, so that a failure does not lose it.

        Not the first pass of hires fix: its picture is small, and not the one that was asked for.
        """
        if generation.p is None or self._host.is_first_pass(generation.p):
            return None
        settings = self._settings()
        held = Kept(batch.detach().to("cpu", copy=True), vae.model_name, vae.scale_factor)
        if settings.disk_mb > 0 and torch.isfinite(held.latents).all():
            held.infotexts = self._infotexts(generation.p, len(batch))
            try:
                held.path = unfinished.write(
                    self.folder,
                    held.latents,
                    held.model_name,
                    held.scale_factor,
                    held.infotexts,
                    settings.disk_mb,
                    vae.factors,
                )
            except InputError as error:
                self._notices.tell_once(
                    "unfinished",
                    f"the latents could not be saved before the decode: {error} The picture is decoded all the same.",
                )
        self._latest.appendleft(held)
        while len(self._latest) > settings.keep:
            dropped = self._latest.pop()
            if dropped.path is not None and dropped is not held:
                self._unfinished.insert(0, dropped)
        return held

    def finished(self, held: Kept | None, generation: Generation, records: Sequence[Record]) -> None:
        """The batch was decoded: note how, and its infotexts."""
        if held is None:
            return
        plans = [record.outcome.plan for record in records if record.operation is Operation.DECODE]
        worst = next((plan for plan in plans if not plan.route.exact), plans[0] if plans else None)
        held.route = HOSTS_OWN if worst is None or generation.fell_to_host else worst.route.value
        held.infotexts = self._infotexts(generation.p, len(held.latents)) or held.infotexts
        self.settle(held)

    def failed(self, held: Kept | None) -> str:
        """Nothing could decode the batch: say where it is; the sentence for the error ("" if it is nowhere)."""
        if held is None or held.path is None:
            return ""
        if held not in self.items():
            self._unfinished.insert(0, held)
        sentence = (
            f"the picture could not be decoded, but it is not lost: its latents are in {held.path}. Free some memory "
            "or choose another VAE, then decode them in the tab VAE > Unfinished."
        )
        self._notices.tell(sentence, warning=True)
        return sentence

    def remove(self, held: Kept) -> None:
        """Throw a batch away, file and all."""
        self.settle(held)
        if held in self._latest:
            self._latest.remove(held)

    def settle(self, held: Kept) -> None:
        """No file is needed any more."""
        if held.path is not None:
            try:
                held.path.unlink(missing_ok=True)
            except OSError as error:
                self._notices.tell_once(
                    f"discard {held.path}", f"{held.path} could not be removed: {error.strerror}."
                )
            held.path = None
        if held in self._unfinished:
            self._unfinished.remove(held)

    def _infotexts(self, p: Any, count: int) -> list[str]:
        try:
            return self._host.infotexts(p, count)
        except Exception as error:  # other extensions' entries may fail; the latents matter more
            log.warning("no infotext for the kept latents: %s", error)
            return []
