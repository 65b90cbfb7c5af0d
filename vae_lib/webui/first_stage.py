"""The host's loaded VAE as our network: the same tensors, so no second copy and never a stale one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.checkpoints import FAMILIES, load_vae
from vae_lib.decode import Operation
from vae_lib.errors import CheckpointError
from vae_lib.networks import TAESD, AutoencoderKL, AutoencoderKLConfig
from vae_lib.webui import notices


def borrow(first_stage: nn.Module, operation: Operation) -> AutoencoderKL:
    """The half of the host's VAE that ``operation`` needs, made of its own Parameters.

    Built anew for each picture (milliseconds): nothing of ours holds on to the weights afterwards, and a VAE that was
    switched, moved or converted is seen at once. The decoder starts where the host calls it, after
    ``post_quant_conv``; the encoder ends with ``quant_conv``, the moments.

    Raises:
        CheckpointError: when the host's VAE is not an AutoencoderKL.
    """
    half = operation.half
    prefixes = (f"{half}.",) if operation is Operation.DECODE else (f"{half}.", "quant_conv.")
    parameters = {
        name: parameter for name, parameter in first_stage.named_parameters() if name.startswith(prefixes)
    }
    config = AutoencoderKLConfig.from_state_dict({name: tuple(p.shape) for name, p in parameters.items()})
    with torch.device("meta"):
        network = AutoencoderKL(config)
    try:
        network.load_state_dict(parameters, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"The loaded VAE is of an unknown kind: {error}") from error
    return network


def wraps(first_stage: Any, operation: Operation) -> bool:
    """Whether the host decodes seamless textures now: it switches its convolutions to circular padding."""
    half = getattr(first_stage, operation.half)
    return getattr(half.conv_in, "padding_mode", "zeros") == "circular"


def compute_dtype(half: nn.Module) -> torch.dtype:
    """The dtype in which the host computes: that of the weights, which follows --no-half-vae and its options."""
    return next(half.parameters()).dtype


def memory_format(half: Any) -> torch.memory_format:
    """How results of the host's convolutions lie in memory: as their weights, which ``--opt-channelslast`` changes."""
    weight = half.conv_in.weight
    channels_last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def unscale(model: Any, latents: Tensor) -> Tensor:
    """Sampler latents as the full VAE takes them (what the host's ``decode_first_stage`` does)."""
    if hasattr(model, "latent_format"):
        return model.latent_format.process_out(latents)
    return latents / model.scale_factor


_FAMILY_FLAGS = {"is_sdxl": "SDXL", "is_sd3": "SD3", "is_sd2": "SD2", "is_sd1": "SD1"}


def family_of(model: Any) -> str | None:
    """The family of a loaded checkpoint, a name in ``FAMILIES``."""
    return next((name for flag, name in _FAMILY_FLAGS.items() if getattr(model, flag, False)), None)


def taesd_folder() -> Path:
    """Where the host looks for TAESD."""
    from modules import paths_internal

    return Path(paths_internal.models_path) / "VAE-taesd"


_taesd: dict[tuple[str, int], TAESD] = {}


def taesd(model: Any, operation: Operation) -> TAESD | None:
    """The half of TAESD for the model's family that is on disk, where the host keeps it; never downloaded here."""
    stem = FAMILIES[family_of(model) or "SD1"].taesd_stem
    half = operation.half
    folder = taesd_folder()
    for path in (folder / f"{stem}_{half}.pth", folder / f"{stem}_{half}.safetensors"):
        try:
            key = (str(path), os.stat(path).st_mtime_ns)
        except OSError:
            continue
        if key not in _taesd:
            try:
                network = load_vae(path, kind="TAESD", hash_file=False).model
            except CheckpointError as error:  # the exact ways do not need it
                notices.tell_once(f"taesd {path}", f"decoding by TAESD is not possible: {error}")
                continue
            assert isinstance(network, TAESD)
            _taesd[key] = network
        return _taesd[key]
    return None
