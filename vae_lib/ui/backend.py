"""What the VAE tab asks of the program around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints import LatentSpace
from vae_lib.engine import Operation
from vae_lib.hub import DownloadManager
from vae_lib.planning import Planner, Preference


@dataclass(frozen=True)
class VAEFile:
    """A file that the tab lists, or a folder that it cannot look into.

    Attributes:
        name: shown, and unique among those listed together.
        problem: why it cannot be used, in a sentence, where that is known without reading it.
    """

    name: str
    path: Path
    problem: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The diffusion model in use, and its file. ``family`` is a name in ``FAMILIES``, None where it is not known."""

    title: str
    family: str | None
    path: Path


@dataclass(frozen=True)
class KeptLatents:
    """Latents of an earlier picture.

    Attributes:
        title: a few words for a list, such as "12:04:31, 512x512".
        latents: the sampler's own (scaled), (B, C, h, w), on any device and of any float dtype.
        space: between the sampler's latents and the VAE's.
    """

    title: str
    latents: Tensor
    space: LatentSpace


@dataclass(frozen=True)
class Unfinished:
    """A batch of pictures of which there is none that is exact.

    Attributes:
        key: tells it from the others.
        is_approximate: whether there are pictures of it by TAESD.
        details: what tells it from others, by name, the shortest first: time, size, checkpoint, seed, prompt.
        preview: makes a small picture of the first, in a moment; None where there is none to be had.
    """

    key: str
    is_approximate: bool
    details: Mapping[str, str]
    preview: Callable[[], Image.Image | None]


@dataclass(frozen=True)
class Finished:
    """What decoding ``Unfinished`` ones came to: the pictures, and a sentence."""

    pictures: Sequence[Image.Image]
    said: str
    is_good: bool


@dataclass(frozen=True)
class Memory:
    """Memory of a device in bytes: all of it, what can be allocated now, and what the user keeps back of that.

    None where nobody knows.
    """

    total: int | None
    free: int | None
    reserve: int = 0

    @property
    def usable(self) -> int | None:
        """What a decode may take."""
        return None if self.free is None else max(0, self.free - self.reserve)


class Backend(Protocol):
    """The host as the tab sees it. Methods are called from any thread and are expected to return soon.

    Each may raise a ``VAEGuardError``; the tab then shows its sentence.
    """

    def files(self) -> Sequence[VAEFile]:
        """The VAEs there are, TAESDs included; damaged files too, which the tab lists with what is wrong."""

    def refresh(self) -> None:
        """Look at the folders again (after a download, or when the user asks)."""

    def in_use(self) -> str | None:
        """The ``name`` of the file whose weights decode now; None when it is none of ``files``."""

    def checkpoint(self) -> Checkpoint | None:
        """The diffusion model in use, if there is one."""

    def cannot_select(self) -> str | None:
        """Why nothing can be selected here, in a sentence; None when ``select`` works."""

    def select(self, name: str) -> None:
        """Decode with this file from now on. When it fails, what was in use stays in use."""

    def can_assign(self) -> bool:
        """Whether ``assign`` and ``select_automatically`` work."""

    def assign(self, name: str | None) -> None:
        """Use this file whenever the checkpoint that is in use now is; None: no file in particular any more."""

    def assigned(self) -> str | None:
        """The file used whenever the checkpoint in use is."""

    def overrides_assigned(self) -> str | None:
        """What is selected, if that makes what is assigned void."""

    def select_automatically(self) -> None:
        """Undo ``select``: what is assigned counts, or else the checkpoint's own VAE."""

    def last_latents(self) -> Sequence[KeptLatents]:
        """Latents of the last pictures, the newest first."""

    def unfinished(self) -> Sequence[Unfinished] | None:
        """Those there are, the newest first; None where none are kept."""

    def finish(self, keys: Sequence[str]) -> Iterator[str | Finished]:
        """Decode some of ``unfinished`` and save their pictures: what is being done, again and again, then the end."""

    def stop_finishing(self) -> None:
        """Have ``finish`` end soon; what is not decoded yet stays."""

    def discard(self, key: str) -> None:
        """Throw one of ``unfinished`` away."""

    def report(self) -> str:
        """What to send to the developers after a failure of the extension's own code; "" when there was none."""

    def devices(self) -> Sequence[torch.device]:
        """Devices whose memory is of interest; the first is the one that decodes."""

    def dtype(self) -> torch.dtype:
        """The floating-point type that the VAE computes in."""

    def memory(self, device: torch.device) -> Memory:
        """Memory of a device now; also asked for the CPU."""

    def planner(self) -> Planner:
        """What plans the decodes of this program, with the memory that it leaves free."""

    def preference(self, operation: Operation) -> Preference:
        """The routes that it takes, and in which order, where nothing else is asked for."""

    def has_taesd(self, operation: Operation) -> bool:
        """Whether there is a TAESD for the diffusion model in use."""

    def spare(self) -> torch.device:
        """Where the routes compute that do so elsewhere."""

    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that are being made."""

    def computing(self) -> AbstractContextManager[object]:
        """Entered while the tab computes, to keep generations and the tab out of each other's way."""

    def downloads(self) -> DownloadManager | None:
        """What downloads run in; None where there are none."""

    def warning(self) -> str | None:
        """What is wrong with all of it, in a sentence, said on top of the tab; asked whenever the page is loaded."""
