"""VAE Guard in a program that is no WebUI: nobody to ask, no settings; what happened is said in sentences."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import free_memory
from vae_lib.engine import Compute, Operation
from vae_lib.engine.compute import Progress
from vae_lib.errors import Aside, Cancelled, DeviceLost, PlanError, VAEGuardError
from vae_lib.guard import frames
from vae_lib.guard.forward import without_autocast
from vae_lib.guard.seam import Seam
from vae_lib.latents import VAELatents
from vae_lib.planning import PROFILES, Planner, Preference, Route
from vae_lib.units import size_text

log = logging.getLogger("vae_guard")


@dataclass(eq=False)
class Alone:
    """The guard of one VAE.

    Attributes:
        program: whose own decode it is that ours is left to, with the genitive's letter: "diffusers'".
        routes: those allowed, the preferred first; or steps of them.
        memory: bytes that may be allocated at most; None: what is free.
        on_event: given a sentence for each picture that came by another route than in full, and once for each reason
            why the program's own decode was used. They are logged as well ("vae_guard").
        outcome: what the last call did, without its numbers; None where the program's own decode was used.
    """

    program: ClassVar[str]

    routes: Sequence[Route] | Preference
    memory: int | None = None
    on_event: Callable[[str], None] | None = None
    outcome: Outcome | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None
    _said: set[str] = field(default_factory=set)

    def say(self, text: str, *, once: bool = False) -> None:
        if once and text in self._said:
            return
        if once:
            self._said.add(text)
        log.warning("%s", text)
        if self.on_event is not None:
            try:
                self.on_event(text)
            except Exception:  # the picture is there
                log.exception("on_event failed")

    def planner(self) -> Planner:
        planner = Planner(free_memory, PROFILES)
        return planner if self.memory is None else planner.within(self.memory)

    # A compiled ``vae.decode`` breaks its graph here: which plan is taken depends on what is free.
    @torch.compiler.disable  # type: ignore[misc]
    def attempt(self, seam: Seam, operation: Operation, x: Tensor) -> Tensor | None:
        """Our picture (B, C, H, W), or the moments (B, 2C, h, w), of videos with the axis of time; None where it is
        left to the program.
        """
        self.outcome = None
        own = f"{self.program} own {operation.value} is used"
        try:
            outcomes = [self._run(seam, operation, part, frames.is_video(x)) for part in frames.parts(x)]
        except (DeviceLost, Cancelled):
            raise
        except VAEGuardError as reason:
            self.say(f"{own}: {reason}", once=True)
            return None
        except Exception as error:
            log.exception("VAE Guard failed; please report this.")
            self.say(f"{own}, because VAE Guard failed: {error}", once=True)
            return None
        *_, outcome = outcomes
        self.outcome = replace(outcome, result=outcome.result.new_empty(0), log_variance=None)
        if outcome.fell_back:
            made = outcome.result if operation is Operation.DECODE else x
            self.say(wording.notice(outcome, operation, made.shape[-1], made.shape[-2], frames.is_video(x)))
        return frames.together([_made(outcome) for outcome in outcomes], x)

    def _run(self, seam: Seam, operation: Operation, given: Tensor, is_video: bool) -> Outcome:
        """
        Args:
            given: one of ``frames.parts``.
        """
        if given.is_meta:
            raise Aside("there are no numbers on the meta device.")
        ladder = self.ladder(seam, operation, given.device, is_video)
        assert ladder.vae is not None
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (given, *ladder.vae.parameters())):
            raise Aside("gradients are wanted. Call it within torch.no_grad(), or vae.requires_grad_(False) before.")
        PROFILES.check(ladder.vae, Compute(given.device, ladder.dtype), lambda text: self.say(text, once=True))

        def run() -> Outcome:
            return ladder.decode(VAELatents(given)) if operation is Operation.DECODE else ladder.encode(given)

        with without_autocast(given.device):
            try:
                return run()
            except PlanError:  # the program's own would take more than any plan of ours
                scale = 1 if operation is Operation.DECODE else ladder.downscale
                height, width = (side // scale for side in given.shape[2:])
                work = ladder.work(operation, height, width, len(given))
                least = ladder.planner.smallest(work, Preference.of(self.routes).routes)
                if self.memory is None or least is None or least.peak_bytes <= self.memory:
                    raise
                needed = least.peak_bytes
                allowed, wanted = size_text(self.memory), size_text(needed, up=True)
                self.say(f"{allowed} of memory is too little for every route; the smallest takes {wanted}.")
                ladder.planner = Planner(lambda device: needed, PROFILES, limit=needed)
            return run()

    def ladder(self, seam: Seam, operation: Operation, device: torch.device, is_video: bool = False) -> Ladder:
        """
        Raises:
            VAEGuardError: when the VAE is not what we compute.
        """
        padding = seam.padding(operation)
        return Ladder(
            seam.network(operation, is_video),
            device=device,
            dtype=seam.dtype(operation),
            order=self.routes,
            planner=self.planner(),
            wrap=padding,
            progress=self.progress,
            cancelled=self.cancelled,
        )


def _made(outcome: Outcome) -> Tensor:
    """The pictures, or the moments."""
    if outcome.log_variance is None:
        return outcome.result
    return torch.cat([outcome.result, outcome.log_variance], dim=1)
