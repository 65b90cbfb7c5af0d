"""Kept latents decoded once more, exactly, by the VAE that is loaded now."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lib.decode import wording
from vae_lib.errors import InputError
from vae_lib.guard import infotext
from vae_lib.guard.guard import NOTHING_LOADED, Guard
from vae_lib.guard.host import Result
from vae_lib.guard.kept import HOSTS_OWN, Kept
from vae_lib.guard.request import Request

Pictures = list[tuple[Image.Image, str]]  # with their infotexts


def decode_again(guard: Guard, held: Kept, deliver: Callable[[Pictures], Result]) -> Result:
    """Decode a kept batch; its file goes when ``deliver`` has the pictures. Takes the host's queue lock.

    Raises:
        InputError: when the loaded model is of another family, or its VAE gives no numbers.
    """
    with guard.host.lock():
        delivered = deliver(_pictures(guard, held))
        guard.kept.settle(held)
        return delivered


def save(guard: Guard, pictures: Pictures) -> Pictures:
    """Save pictures among the host's; the same pictures."""
    for image, text in pictures:
        image.info["parameters"] = text
        guard.host.save(image, text)
    return pictures


def _pictures(guard: Guard, held: Kept) -> Pictures:
    vae = guard.host.vae()
    if vae is None:
        raise InputError(f"{NOTHING_LOADED} These latents are of {held.model_name}.")
    if vae.scale_factor != held.scale_factor or vae.latent_channels != held.latents.shape[1]:
        raise InputError(
            f"These latents are of {held.model_name}, and the loaded checkpoint is of another family; "
            "load that checkpoint first."
        )
    pictures = []
    with torch.no_grad(), guard.generations.running(None, Request(decode_by="Full")) as current:
        for number, latents in enumerate(torch.split(held.latents, 1)):
            with guard.guarding():
                try:
                    decoded = guard.host.decode(latents)
                except InputError as error:
                    raise InputError(f"{error} The latents are kept.") from error
            text = held.infotexts[number] if number < len(held.infotexts) else ""
            done = wording.entry(current.records[-1].outcome) if current.records else HOSTS_OWN
            pictures.append((_as_image(decoded[0]), infotext.replaced(text, done)))
    guard.host.after_decoding()
    held.route = current.records[-1].outcome.plan.route.value if current.records else HOSTS_OWN
    return pictures


def _as_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1]."""
    pixels = ((picture.float().cpu() + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0)  # (H, W, 3)
    return Image.fromarray(pixels.numpy().astype(np.uint8))
