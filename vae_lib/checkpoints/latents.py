"""Latents on disk, and what there is to check of them before they are decoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from vae_lib.catalog import FAMILIES, LatentSpace
from vae_lib.checkpoints import latent_files
from vae_lib.checkpoints.evidence import join
from vae_lib.checkpoints.header import quote
from vae_lib.checkpoints.identify import Identity
from vae_lib.errors import CheckpointError, InputError
from vae_lib.files import PathLike

_CHANNELS = {channels for f in FAMILIES.values() for channels in (f.latent_channels, f.sampler_channels)}


def load_latents(path: PathLike, *, videos: bool = False) -> tuple[torch.Tensor, dict[str, str]]:
    """The latents (B, C, h, w) in a file, on the CPU and in the file's float dtype, and the file's metadata.

    Read are safetensors files with one tensor ``latents``, or with one tensor at all; ComfyUI's ``.latent``; what
    ``torch.save`` makes of a tensor, of a list of them or of a dict; ``.npy``; and kohya's ``.npz``. Latents of one
    picture (C, h, w) are a batch of one. With ``videos`` those of a video come as well, (1, C, T, h, w). Where the tool
    keeps them as the VAE gives them, the metadata has factors 1 and 0.

    Raises:
        InputError: when the file cannot be read, has no latents, or the latents cannot be decoded: not of
            four dimensions, empty, not floating point, or with NaN or infinite numbers in them.
    """
    name = Path(path).name
    try:
        found = latent_files.read(Path(path))
    except CheckpointError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    latents = found.latents
    shape = tuple(latents.shape)
    if 0 in shape:
        raise InputError(f"The latents in {name} are empty: their shape is {shape}.")
    if latents.ndim == 5 and shape[2] == 1:  # one frame, as the models of videos have a picture
        latents = latents[:, :, 0]
    elif videos and latents.ndim == 5:
        if shape[0] > 1:
            raise InputError(f"{name} holds the latents of {shape[0]} videos; save those of each by themselves.")
    elif latents.ndim == 3 and shape[0] in _CHANNELS:
        latents = latents[None]
    elif latents.ndim != 4:
        raise InputError(
            f"The latents in {name} have shape {shape}; (batch, channels, height, width) is needed{_hint(shape)}."
        )
    if not latents.is_floating_point():
        kind = str(latents.dtype).removeprefix("torch.")
        raise InputError(f"The latents in {name} are of type {kind}; floating-point numbers are needed.")
    if latents.element_size() == 1:
        latents = latents.to(torch.float16)  # few operations know fp8
    check_finite(latents, name)
    return latents, found.metadata


def _hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return ". If they are a transformer's sequence of packed latents, unpack them to height and width first"
    if len(shape) == 5:
        return ". If they are a video's, decode them with `python -m vae_lib decode`"
    return ""


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


def space_in(metadata: Mapping[str, str], what: str = "The file") -> LatentSpace | None:
    """The space that a file's metadata gives: as such, by its factors, or by a family's name; None when it gives none.

    Args:
        what: what the sentence calls the file.

    Raises:
        InputError: when the numbers are none that latents can be divided by and added to.
    """
    if "latent_space" in metadata:
        try:
            return LatentSpace.parse(metadata["latent_space"])
        except ValueError as error:
            raise InputError(
                f"{what} have an entry 'latent_space' in their metadata that cannot be read; remove it there, or write "
                "them again with the tool that made them."
            ) from error
    if "scaling_factor" not in metadata:
        family = FAMILIES.get(metadata.get("vae_guard.family", metadata.get("family", "")))
        return None if family is None or family.packing is not None else LatentSpace.of(family, {})
    given = (metadata["scaling_factor"], metadata.get("shift_factor", "0"))
    scale, shift = (_number(text) for text in given)
    if not scale or shift is None:
        name, text = ("scaling", given[0]) if not scale else ("shift", given[1])
        raise InputError(
            f"{what} have an invalid {name} factor in their metadata, {quote(text)}; remove it there, or write them "
            "again with the tool that made them."
        )
    return LatentSpace(scale, shift)


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
    if identity.family is not None:
        wanted.add(identity.family.sampler_channels)
    if channels in wanted:
        return
    others = [
        family.name for family in FAMILIES.values() if channels in (family.latent_channels, family.sampler_channels)
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
