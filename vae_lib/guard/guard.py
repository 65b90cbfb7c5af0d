"""VAE Guard at work in one WebUI: every decode and encode of a picture goes through our engine.

The host's functions that decode or encode a *picture* are wrapped. Inside them, and only in their thread, ours stands
in at the VAE's seam. So all the rest stays the host's own: scaling and its inverse
for every family, the sampling of the posterior (same random numbers), ``--lowvram``'s moves, the choice of TAESD in
the settings. Live previews call other functions, or do so in other threads: they are not touched. Whatever goes wrong
in our code ends in the host's own forward, so the picture comes out.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lib.catalog import LatentSpace, family_of_space
from vae_lib.decode import Ladder, wording
from vae_lib.device import free_memory
from vae_lib.engine import Compute, Operation
from vae_lib.guard import borrow, frames, infotext, policy
from vae_lib.guard import settings as settings_of
from vae_lib.guard.forward import Forward
from vae_lib.guard.generation import Generation, Generations
from vae_lib.guard.host import TELLS_MORE, Host, HostVAE, Result, family_of
from vae_lib.guard.kept import KeptLatents
from vae_lib.guard.kept_videos import KeptVideos
from vae_lib.guard.notices import Notices
from vae_lib.guard.precision import Precision
from vae_lib.guard.request import Request
from vae_lib.guard.seam import attribute
from vae_lib.guard.settings import Settings
from vae_lib.latents import SamplerLatents
from vae_lib.planning import PROFILES, Outlook, Planner, Preference, Route

MB = 10**6
NOTHING_LOADED = "No checkpoint is loaded yet; generate a picture first."
UNKNOWN = "VAE Guard does not know this WebUI: its own decode is used."
NO_NETWORK = "VAE Guard has no network for this model's VAE yet: the WebUI's own decode is used."


class Guard:
    """Implements ``Points``: what the host's picture functions are wrapped in.

    Attributes:
        unserved: why the last model's VAE is left to the host's own decode, as a sentence; empty where it is not.
        last_decode: route, time and memory of the last picture, in a few words; empty where it was not ours.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.generations = Generations()
        self.notices = Notices(host, self.generations)
        self.kept = KeptLatents(host, self.notices, self.settings)
        self.videos = KeptVideos(self.kept.folder, self.notices)
        folders = host.folders()
        self.precision = Precision(folders.data)
        self.taesd = borrow.TAESDFolder(folders.taesd, self.notices.tell_once)
        self.unserved = ""
        self.last_decode = ""

    def settings(self) -> Settings:
        """As they are now, overrides of the running generation included."""
        return settings_of.read(self.host.settings(), self.notices.tell_once)

    def available_bytes(self, device: torch.device) -> int | None:
        """What may be allocated now, less the user's reserve; None where nobody knows.

        With ``--lowvram`` and ``--medvram`` the host has moved the UNet out by the time a decode asks, so what it
        freed is counted: free for the driver, or unused in PyTorch's cache.
        """
        free = free_memory(device)
        return None if free is None else max(0, free - self.settings().reserve_mb * MB)

    def generation(self, p: Any) -> AbstractContextManager[Generation]:
        return self.generations.running(p, getattr(p, "vae_guard", None) or Request())

    def is_generating(self) -> bool:
        return self.generations.current is not None

    def batch(self, model: Any, latents: Tensor, decode: Callable[[], Result]) -> Result:
        current, vae = self.generations.current, self._vae(model)
        if current is None or vae is None or not _are_latents_of(vae, latents):
            return decode()
        start, current.fell_to_host, current.is_black = len(current.records), False, False
        if (again := current.again) is not None:
            result = decode()
            outcome = infotext.worst(current.records[start:])
            if outcome is not None and not current.fell_to_host:
                again.route, again.done = outcome.plan.route.value, wording.entry(outcome)
                self.last_decode = wording.summary(outcome)
            return result
        self.last_decode = ""
        current.is_first_pass = self.host.is_first_pass(current.p)
        held = video = None
        if frames.is_video(latents):
            video = self.videos.hold(vae, latents, self.settings().disk_mb)
        else:
            held = self.kept.hold(current, vae, *frames.parts(latents))
        current.promise = functools.partial(self.kept.promise, held)
        try:
            result = decode()
        except BaseException as error:
            if where := self.kept.failed(held) or self.videos.failed(video):  # the type stays: callers look at it
                error.args = (f"{error} VAE Guard: {where}", *error.args[1:])
                setattr(error, TELLS_MORE, True)
            raise
        if current.is_black:
            self.kept.failed(held)
            self.videos.failed(video)
            return result
        self.videos.finished(video)
        records = current.records[start:]
        worst = infotext.worst(records)
        self.last_decode = "" if worst is None else wording.summary(worst)
        self.host.note(current.p, infotext.entries(current, records))
        self.kept.finished(held, current, records)
        return result

    def completed(self, infotexts: Sequence[str], images: Sequence[Image.Image], grid: Sequence[Image.Image]) -> None:
        current = self.generations.current
        if current is not None and current.again is None:
            self.kept.completed(current, infotexts, images, grid)

    @contextmanager
    def guarding(self, model: Any = None, scaled: Tensor | None = None) -> Iterator[None]:
        """While this is open, the VAE of ``model`` decodes and encodes in this thread by us."""
        vae = self._vae(model)
        seam = None if vae is None else vae.seam
        here = threading.get_ident()
        if vae is None or seam is None or getattr(seam.module, "_vae_guard_thread", None) == here:
            yield
            return
        with (
            attribute(seam.module, "_vae_guard_thread", here),
            self.host.reserving(vae, functools.partial(self.need_bytes, vae)),
            seam.standing_in(Forward(self, vae, seam, scaled).replacing),
        ):
            yield

    def _vae(self, model: Any) -> HostVAE | None:
        """The model's VAE; where it is not what we know, that is reported once, and the host decodes by itself."""
        vae = self.host.vae(model)
        self.unserved = self.problem(vae)
        if self.unserved:
            self.notices.tell_once(f"unserved {vae and vae.model_name}", self.unserved)
            return None
        return vae

    @staticmethod
    def problem(vae: HostVAE | None) -> str:
        """Why a model's VAE is left to the host's own decode, as a sentence; empty where it is not."""
        if vae is None:
            return UNKNOWN
        return "" if vae.seam.is_supported() else NO_NETWORK

    def preview(self, latents: Tensor, space: LatentSpace) -> Image.Image | None:
        """A rough picture of scaled latents (1, C, h, w): TAESD's where it is, else as rough as the host's own."""
        taesd = self.taesd.load(family_of_space(latents.shape[1], space), Operation.DECODE)
        if taesd is None:
            return self.host.preview(latents[0])
        with torch.no_grad():
            ladder = Ladder(None, taesd, order=(Route.TAESD,))
            picture = ladder.decode(None, SamplerLatents(latents)).result[0]  # (3, H, W)
        pixels = ((picture.float() + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0)  # (H, W, 3)
        return Image.fromarray(pixels.numpy().astype(np.uint8))

    def need_bytes(self, vae: HostVAE, operation: Operation, shape: tuple[int, ...]) -> int:
        """What our decode or encode takes on the device, planned for what is free; ``shape`` as ``borrow`` has it."""
        device, current = self.host.device(), self.generations.current
        is_video = frames.is_video_shape(shape)
        preference = policy.of(current, self.settings(), operation, is_video)
        ladder = self.ladder(vae, operation, device, preference, is_video)
        return borrow.need_bytes(ladder, operation, shape, vae.space.side)

    def preference(self, operation: Operation) -> Preference:
        """The steps for a generation that asks for nothing in particular."""
        return policy.preference(Request(), self.settings(), operation)

    def planner(self) -> Planner:
        """What every face asks, so that all promise what a generation does."""
        return Planner(self.available_bytes, PROFILES)

    def outlook(self, vae: HostVAE, operation: Operation, width: int, height: int, batch: int) -> Outlook:
        """What such a generation would do with pictures of so many pixels."""
        ladder = self.ladder(vae, operation, self.host.device(), self.preference(operation))
        scale = ladder.downscale
        work = ladder.work(operation, height // scale, width // scale, batch)
        return ladder.outlook(replace(work, picture=None if operation is Operation.DECODE else (height, width)))

    def ladder(
        self, vae: HostVAE, operation: Operation, device: torch.device, preference: Preference, is_video: bool = False
    ) -> Ladder:
        """The ladder on a VAE as it is loaded now, with the host's options."""
        seam = vae.seam
        padding = seam.padding(operation)
        repair, checks = self.host.repair_dtypes(), self.host.checks_numbers()
        dtype = seam.dtype(operation)
        if checks and not self.precision.is_empty():
            needed = self.precision.known(vae.identity())
            dtype = needed if needed in repair else dtype
        ours = seam.network(operation, is_video)
        current = self.generations.current
        again = None if current is None else current.again
        wants_taesd = any(Route.TAESD in step.routes for step in preference.steps)

        def tell(text: str) -> None:
            self.notices.tell_once(f"check {device} {dtype}", text)

        PROFILES.check(ours, Compute(device, dtype), tell)
        return Ladder(
            ours,
            self.taesd.load(family_of(vae), operation) if wants_taesd else None,
            device=device,
            dtype=dtype,
            order=preference,
            planner=self.planner(),
            spare=self.settings().spare,
            repair=repair,
            wrap=padding,
            check_finite=checks,
            cancelled=None if again is None else again.cancelled,
        )


def _are_latents_of(vae: HostVAE, finished: Tensor) -> bool:
    """Not the pixels that a model like PiD samples: nothing is to be decoded in them."""
    return finished.ndim in (4, 5) and finished.shape[1] == vae.latent_channels
