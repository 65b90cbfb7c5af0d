"""Latents on disk: one tensor ``latents`` in a safetensors file, as the sampler left it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from vae_lib.catalog import FAMILIES
from vae_lib.checkpoints.evidence import join
from vae_lib.checkpoints.header import quote, quote_some
from vae_lib.checkpoints.identify import Identity
from vae_lib.checkpoints.source import open_weights
from vae_lib.errors import CheckpointError, InputError
from vae_lib.files import PathLike

KEY = "latents"


def load_latents(path: PathLike) -> tuple[torch.Tensor, dict[str, str]]:
    """The latents (B, C, h, w) in a file, on the CPU and in the file's float dtype, and the file's metadata.

    Raises:
        InputError: when the file cannot be read, has no such tensor, or the latents cannot be decoded: not of
            four dimensions, empty, not floating point, or with NaN or infinite numbers in them.
    """
    try:
        with open_weights(path) as file:
            name, tensors = file.header.path.name, file.header.tensors
            if KEY not in tensors:
                held = f"only {quote_some(list(tensors))}" if tensors else "nothing"
                raise InputError(
                    f"{name} holds no tensor named '{KEY}' ({held}); save the latents under that name."
                )
            shape = tensors[KEY].shape
            if len(shape) != 4:
                raise InputError(
                    f"The latents in {name} have shape {shape}; (batch, channels, height, width) is needed."
                )
            if 0 in shape:
                raise InputError(f"The latents in {name} are empty: their shape is {shape}.")
            latents = file.read(KEY)
            metadata = dict(file.header.metadata)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if not latents.is_floating_point():
        kind = str(latents.dtype).removeprefix("torch.")
        raise InputError(f"The latents in {name} are of type {kind}; floating-point numbers are needed.")
    if latents.element_size() == 1:
        latents = latents.to(torch.float16)  # few operations know fp8
    check_finite(latents, name)
    return latents, metadata


def check_finite(latents: torch.Tensor, name: str = "the input") -> None:
    """Refuse latents that no decoder can make a picture of.

    Raises:
        InputError: when there are NaN or infinite numbers in them.
    """
    bad = int((~torch.isfinite(latents)).sum())
    if bad:
        raise InputError(
            f"The latents in {name} hold {bad} NaN or infinite numbers of {latents.numel()}; the diffusion "
            "model (UNet) failed, not the VAE. Sample again, in full precision (--no-half) if it recurs."
        )


def factors_in(metadata: Mapping[str, str], what: str = "The file") -> tuple[float, float] | None:
    """Scaling and shift factor that a file's metadata gives; None when it gives none.

    Args:
        what: what the sentence calls the file.

    Raises:
        InputError: when they are no numbers that latents can be divided by and added to.
    """
    if "scaling_factor" not in metadata:
        return None
    told = (metadata["scaling_factor"], metadata.get("shift_factor", "0"))
    scale, shift = (_number(text) for text in told)
    if not scale or shift is None:
        name, text = ("scaling", told[0]) if not scale else ("shift", told[1])
        raise InputError(
            f"{what} say in their metadata that their {name} factor is {quote(text)}, which cannot be; remove it "
            "there, or write them again with the tool that made them."
        )
    return scale, shift


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check_channels(identity: Identity, channels: int) -> None:
    """Refuse latents that are not a VAE's.

    Raises:
        InputError: it names the families that the latents may be of.
    """
    wanted = {identity.latent_channels}
    if identity.family is not None and not identity.is_taesd:
        wanted.add(identity.family.sampler_channels)
    if channels in wanted:
        return
    others = [
        family.name
        for family in FAMILIES.values()
        if channels in (family.latent_channels, family.sampler_channels)
    ]
    belong = (
        f"those of {join(others, 'or')} have so many. Choose that family's VAE."
        if others
        else ("no known family has so many. Choose the VAE of the model that made them.")
    )
    raise InputError(
        f"These latents have {channels} channels and {identity.path.name} takes "
        f"{join(list(map(str, sorted(wanted))), 'or')}; {belong}"
    )
