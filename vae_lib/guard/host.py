"""What VAE Guard asks of the WebUI around it. Each kind of WebUI implements this in ``vae_lib.hosts``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from vae_lib.catalog import FAMILIES, Family, LatentSpace, family_of_space
from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.engine import Operation
from vae_lib.guard.generation import Again
from vae_lib.guard.seam import Seam

Result = TypeVar("Result")
Need = Callable[[Operation, tuple[int, ...]], int]
"""Bytes that our decode of the sampler's latents, or encode of pictures, of that shape takes on the device."""
TELLS_MORE = "vae_guard_tells_more"  # on an error of the host's whose message also says where the latents are


@dataclass(frozen=True)
class Folders:
    """Where the host keeps things: its data, VAEs (where downloads go), and TAESD."""

    data: Path
    vae: Path
    taesd: Path


class HostVAE(Protocol):
    """The VAE of a loaded checkpoint, where the host has it."""

    @property
    def module(self) -> nn.Module:
        """With ``encoder`` and ``decoder``."""

    @property
    def seam(self) -> Seam:
        """Where ours stands in for the host's own decode and encode."""

    @property
    def model_name(self) -> str:
        """The checkpoint's."""

    @property
    def family(self) -> str | None:
        """A name in ``FAMILIES``, for those that have one space: ``family_of``. None where the host does not know."""

    @property
    def latent_channels(self) -> int:
        """Of the sampler's latents."""

    @property
    def space(self) -> LatentSpace:
        """Between the sampler's latents and the VAE's."""

    def identity(self) -> str:
        """What tells these weights from others: the hash of their file, or its path, size and time."""


def family_of(vae: HostVAE) -> Family | None:
    """The family of a loaded model's latents, by their space, and by name where two have the same."""
    found, said = family_of_space(vae.latent_channels, vae.space), FAMILIES.get(vae.family or "")
    return said if found is not None and said is not None and said.shares_latents(found) else found


def family_name(vae: HostVAE | None) -> str | None:
    """A name in ``FAMILIES``; None where it is none of these, or nothing is loaded."""
    family = None if vae is None else family_of(vae)
    return None if family is None else family.name


class Points(Protocol):
    """What the host's picture functions are wrapped in."""

    def generation(self, p: Any) -> AbstractContextManager[object]:
        """Around a whole generation; ``p`` is the host's processing object."""

    def batch(self, model: Any, latents: Tensor, decode: Callable[[], Result]) -> Result:
        """Around the decode of a batch of finished latents (B, C, h, w), as the sampler left them."""

    def guarding(self, model: Any = None, scaled: Tensor | None = None) -> AbstractContextManager[object]:
        """Around any decode (of the latents ``scaled``) or encode of a picture; None: the loaded model."""

    def completed(self, infotexts: Sequence[str], images: Sequence[Image.Image], grid: Sequence[Image.Image]) -> None:
        """Inside ``generation``: it is over.

        Args:
            infotexts: of its pictures, in their order.
            images: the pictures in this order; masks and what extensions add may stand between or after them.
            grid: that of the pictures, if the host made one.
        """

    def is_generating(self) -> bool:
        """Whether this thread is inside a generation."""


class Host(Protocol):
    """A WebUI. Methods are called from any thread."""

    name: str

    def vae(self, model: Any = None) -> HostVAE | None:
        """The VAE of ``model`` (None: the loaded one, which may load it); None when it is not where it should be."""

    def wrap(self, points: Points) -> None:
        """Wrap the host's picture functions until ``unwrap``."""

    def unwrap(self) -> None:
        """Undo ``wrap`` and every other patch of ours."""

    def reserving(self, vae: Any, need: Need) -> AbstractContextManager[object]:
        """While open, the host's memory manager is asked for no more than ``need`` before ``vae`` decodes or encodes.

        A host that makes room for the plain network would move the diffusion model out of the way for it. Its own
        tiles stay away as well: they are what we are here to avoid.
        """

    def make_room_for_own(self, vae: Any, operation: Operation, shape: tuple[int, ...]) -> None:
        """Ask for what the host's own decode or encode takes: ours has failed. ``shape``: what its half was given."""

    def settings(self) -> Mapping[str, object]:
        """Values of our settings by key, overrides of the running generation included; those not set are left out."""

    def folders(self) -> Folders: ...

    def device(self) -> torch.device:
        """The one that decodes."""

    def dtype(self) -> torch.dtype:
        """The floating-point type that the VAE computes in."""

    def repair_dtypes(self) -> tuple[torch.dtype, ...]:
        """What the user allows for numbers that overflow."""

    def checks_numbers(self) -> bool:
        """Whether the user wants to be told of NaN."""

    def numeric_error(self, message: str) -> Exception | None:
        """The host's own error for pictures of NaN; None where it makes them black and goes on."""

    def lock(self) -> AbstractContextManager[object]:
        """The queue lock that keeps generations and other work out of each other's way."""

    def job(self, name: str) -> AbstractContextManager[object]:
        """As ``lock``, and the host's state says that it is busy with this."""

    def progress_text(self) -> str | None:
        """The text in the page's progress bar."""

    def show_progress_text(self, text: str | None) -> None: ...

    def notify(self, message: str, *, warning: bool) -> None:
        """A notice in the page, if this thread serves one."""

    def comment(self, p: Any, message: str) -> None:
        """A line below the generation's picture."""

    def note(self, p: Any, entries: Mapping[str, str]) -> None:
        """Entries in the infotext of the generation's pictures."""

    def infotexts(self, p: Any, count: int) -> list[str]:
        """Those of the batch that is being decoded, without what is noted after its decode; may raise anything."""

    def is_first_pass(self, p: Any) -> bool:
        """Whether the generation is at the small picture that hires fix enlarges."""

    def afterwards(self, p: Any) -> Afterwards:
        """What is still to be done to the pictures of the batch that is about to be decoded."""

    def has_checkpoint(self, name: str) -> bool:
        """Whether a checkpoint of this name can be loaded."""

    def finish(self, latents: Latents, again: Again, saved: bool | None) -> Sequence[tuple[Image.Image, str]]:
        """Pictures of kept latents, decoded by their checkpoint and finished as in their generation, with infotexts.

        Called in the host's queue lock. What is loaded and set is put back, as after any generation.

        Args:
            again: stands on the processing object as ``vae_guard_again``.
            saved: whether the pictures are saved among the host's own; None: as the generation had it.

        Raises:
            InputError: when the decode gives NaN.
        """

    def preview(self, latents: Tensor) -> Image.Image | None:
        """A rough picture of latents (C, h, w), at once and by little work; None where that cannot be had."""


class Callbacks(Protocol):
    """What the host calls in the life of the page."""

    def settings_page(self) -> Sequence[Setting]:
        """The settings to add."""

    def tabs(self) -> list[tuple[Any, str, str]]:
        """Our tab: a gr.Blocks, its title and its elem_id."""

    def before_page(self) -> None: ...

    def component_made(self, component: Any, elem_id: str) -> None:
        """Called with every component of the page, when it is made."""

    def page_started(self, demo: Any, app: Any) -> None:
        """The page is served: ``demo`` is the gr.Blocks, ``app`` the FastAPI application."""

    def model_loaded(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Setting:
    """One entry of the settings page.

    Attributes:
        key: in the host's config.json.
        component: a gr component's class, or a function that makes one.
        saved: whether the value is kept; False for a button.
    """

    key: str
    default: Any
    label: str
    component: Any
    arguments: Mapping[str, Any] | None = None
    info: str = ""
    saved: bool = True
