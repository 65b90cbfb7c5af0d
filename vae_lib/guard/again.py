"""Kept latents decoded once more, exactly, with all that the host does to a picture after the decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from vae_lib.errors import Cancelled, DeviceLost, InputError, VAEGuardError
from vae_lib.guard import infotext
from vae_lib.guard.guard import NOTHING_LOADED, Guard
from vae_lib.guard.kept import HOSTS_OWN, Kept

Pictures = Sequence[tuple[Image.Image, str]]  # with their infotexts


@dataclass
class DecodedAgain:
    """Implements ``generation.Again``."""

    infotexts: Sequence[str]
    cancelled: Callable[[], bool] | None = None
    vae_in_use: bool = False
    route: str | None = None
    done: str | None = None

    def infotext(self, index: int, vae: Mapping[str, str | None]) -> str | None:
        if not 0 <= index < len(self.infotexts):
            return None
        return infotext.replaced(self.infotexts[index], self.done or HOSTS_OWN, vae)


def decode_again(
    guard: Guard,
    held: Kept,
    *,
    saved: bool | None = None,
    cancelled: Callable[[], bool] | None = None,
    vae_in_use: bool = False,
) -> Pictures:
    """Decode a kept batch; its file goes when the pictures are there. The caller holds the host's queue lock.

    Args:
        saved: among the host's pictures; None: as the generation had it.
        cancelled: asked while it runs.
        vae_in_use: decode with the VAE that is in use, instead of the one of their generation.

    Raises:
        InputError: when the latents cannot be decoded, or not by what is loaded.
        Cancelled: when ``cancelled`` says so.
    """
    latents = held.latents()
    if not guard.host.has_checkpoint(held.model_name):
        _check_loaded(guard, held)
    again = DecodedAgain(latents.infotexts, cancelled, vae_in_use)
    try:
        pictures = guard.host.finish(latents, again, saved)
    except (InputError, Cancelled, DeviceLost):
        raise
    except VAEGuardError as error:
        raise InputError(f"{error} The latents are kept.") from error
    except Exception as error:
        raise InputError(
            f"The latents could not be decoded ({type(error).__name__}: {error}). They are kept."
        ) from error
    if len(pictures) < held.shape[0]:
        raise Cancelled("Stopped: the latents are kept.")
    held.route = again.route or HOSTS_OWN
    held.infotexts = [text for _, text in pictures]
    guard.kept.settle(held)
    return pictures


def not_repeated(items: Sequence[Kept]) -> str:
    """What the pictures lack of what other extensions do after the decode, as a sentence; "" if nothing."""
    titles = sorted({title for item in items for title in item.not_repeated})
    if not titles:
        return ""
    which, was = (titles[0], "was") if len(titles) == 1 else (", ".join(titles), "were")
    return f"{which}, which may work on a picture after its decode, {was} not repeated."


def _check_loaded(guard: Guard, held: Kept) -> None:
    """The checkpoint of the latents is gone: another of its family does as well, but for its VAE."""
    vae = guard.host.vae()
    if vae is None:
        raise InputError(f"{NOTHING_LOADED} These latents are of {held.model_name}.")
    if not vae.space.same_as(held.space) or vae.latent_channels != held.shape[1]:
        raise InputError(
            f"These latents are of {held.model_name}, which is not among the checkpoints any more, and the loaded "
            "checkpoint is of another family; load one of theirs first."
        )
