"""Latents on disk: one tensor ``latents`` in a safetensors file, as the sampler left it."""

from __future__ import annotations

import torch

from vae_lib.checkpoints.header import quote_some
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
