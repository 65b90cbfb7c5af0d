"""What the VAE tab asks of the program around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints import LatentSpace
from vae_lib.device import free_memory, total_memory
from vae_lib.engine import Operation
from vae_lib.hub import DownloadManager
from vae_lib.planning import DEFAULT_ORDER, PROFILES, Planner, Preference


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
        is_draft: whether the user asked for TAESD, so that nothing went wrong.
        details: what tells it from others, by name, the shortest first: time, size, checkpoint, seed, prompt.
        preview: makes a small picture of the first, in a moment; None where there is none to be had.
    """

    key: str
    is_approximate: bool
    is_draft: bool
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


class VAEChoice(Protocol):
    """The WebUI's own choice of a VAE. What cannot be done raises an InputError, and what was in use stays."""

    @property
    def assigns_vaes(self) -> bool:
        """Whether a VAE can be noted for a checkpoint, and a choice be left to that."""

    def refresh_vaes(self) -> None:
        """Rescan the folders."""

    def vae_in_use(self) -> str | None:
        """The name of the chosen VAE; None where it is the checkpoint's own."""

    def select_vae(self, name: str) -> None:
        """Decode with this one from now on."""

    def assign_vae(self, name: str | None) -> None:
        """Note a VAE for the loaded checkpoint; None: no VAE in particular any more."""

    def select_automatically(self) -> None:
        """Choose no VAE: each checkpoint then has the one noted for it, or its own."""

    def assigned_vae(self) -> str | None:
        """The VAE noted for the loaded checkpoint."""

    def overrides_assignments(self) -> str | None:
        """The chosen VAE, if it makes what is noted for checkpoints void."""


class UnfinishedList(Protocol):
    """Batches of which there is no exact picture."""

    def listed(self) -> Sequence[Unfinished]:
        """The newest first."""

    def finish(self, keys: Sequence[str], vae_in_use: bool) -> Iterator[str | Finished]:
        """Decode some and save their pictures: what is being done, again and again, then the end.

        Args:
            vae_in_use: with the VAE that is in use, instead of the one of their generation.
        """

    def stop(self) -> None:
        """Have ``finish`` end soon; what is not decoded yet stays."""

    def discard(self, key: str) -> None:
        """Throw one away."""

    def report(self) -> str:
        """What to send to the developers after a failure of the extension's own code; "" when there was none."""


class Backend(ABC):
    """The program around the tab; what is not abstract says what one is like that generates no pictures.

    Methods are called from any thread and are expected to return soon. Each may raise a ``VAEGuardError``; the tab then
    shows its sentence.
    """

    host: VAEChoice | None = None
    unfinished: UnfinishedList | None = None

    @abstractmethod
    def files(self) -> Sequence[VAEFile]:
        """The VAEs there are, TAESDs included; damaged files too, which the tab lists with what is wrong."""

    @abstractmethod
    def device(self) -> torch.device:
        """The one that decodes."""

    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The floating-point type that the VAE computes in."""

    @abstractmethod
    def downloads(self) -> DownloadManager:
        """What downloads run in."""

    def checkpoint(self) -> Checkpoint | None:
        """The diffusion model in use, if there is one."""
        return None

    def last_latents(self) -> Sequence[KeptLatents]:
        """Latents of the last pictures, the newest first."""
        return ()

    def reserve(self) -> int:
        """Bytes of free memory that the user keeps back."""
        return 0

    def memory(self, device: torch.device) -> Memory:
        """Memory of a device now; also asked for the CPU."""
        return Memory(total_memory(device), free_memory(device), self.reserve())

    def planner(self) -> Planner:
        """What plans the decodes of this program, with the memory that it leaves free."""
        return Planner(lambda device: self.memory(device).usable, PROFILES)

    def preference(self, operation: Operation) -> Preference:
        """The routes that it takes, and in which order, where nothing else is asked for."""
        return Preference.of(DEFAULT_ORDER)

    def has_taesd(self, operation: Operation) -> bool:
        """Whether there is a TAESD for the diffusion model in use."""
        return False

    def spare(self) -> torch.device:
        """Where the routes compute that do so elsewhere."""
        return torch.device("cpu")

    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that are being made."""
        return 1024, 1024

    def computing(self) -> AbstractContextManager[object]:
        """Entered while the tab computes, to keep generations and the tab out of each other's way."""
        return nullcontext()

    def warning(self) -> str | None:
        """What is wrong with all of it, in a sentence, said on top of the tab; asked whenever the page is loaded."""
        return None
