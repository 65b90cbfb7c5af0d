"""The host's loaded VAE as our network: the same memory, so no second copy and never a stale one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.checkpoints import Family, load_vae
from vae_lib.checkpoints.layouts import map_keys
from vae_lib.decode import Ladder
from vae_lib.engine import Operation
from vae_lib.errors import CheckpointError
from vae_lib.guard import frames
from vae_lib.networks import TAESD, Network, assign, of_video, recognise

# What of a network the hosts' halves are: they call the decoder after its 1x1 convolution.
PARTS = {Operation.DECODE: ("decoder.",), Operation.ENCODE: ("encoder.", "quant_conv.")}
# With every 1x1 convolution: what the methods of a whole VAE run.
WHOLE_PARTS = {Operation.DECODE: ("decoder.", "post_quant_conv."), Operation.ENCODE: PARTS[Operation.ENCODE]}


def is_supported(module: Any) -> bool:
    """Whether it has the two halves that we can stand in for, and whether we have a network for them."""
    halves = [getattr(module, half, None) for half in ("encoder", "decoder")]
    if not isinstance(module, nn.Module) or not all(isinstance(half, nn.Module) for half in halves):
        return False
    _, shapes = _part(dict(module.named_parameters()), PARTS[Operation.DECODE])
    if any(".parametrizations." in name for name in shapes):
        return True  # under names of its own; which layer that is, ``layers`` says
    return _patch_of(tuple(shapes.items())) == 1  # else the host puts the picture together after its decoder


def is_supported_whole(module: nn.Module) -> bool:
    """The same where we stand in for methods around both halves."""
    own = dict(module.named_parameters())
    parts = [_part(own, WHOLE_PARTS[operation])[1] for operation in Operation]
    return all(_patch_of(tuple(shapes.items())) is not None for shapes in parts)


@functools.lru_cache(maxsize=8)  # asked before each decode, and 20 ms
def _patch_of(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> int | None:
    """Of our network for these weights; None where we have none."""
    try:
        return recognise(dict(shapes)).config.patch
    except CheckpointError:
        return None


def _part(own: Mapping[str, Tensor], parts: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """The ``parts`` of a network by their names and in their shapes in ours, and the shapes that tell which it is."""
    if (keys := map_keys(own)) is None:
        return {}, {}
    views = {name: keys.view(name, own[source]) for name, source in keys.sources.items() if name.startswith(parts)}
    others = {name: own[source] for name, source in keys.between_frames.items() if name.startswith(parts)}
    return views, {name: tuple(tensor.shape) for name, tensor in (views | others).items()}


def quant_conv(first_stage: nn.Module) -> nn.Module | None:
    """The 1x1 convolution that the encoder's result goes through, whatever its host calls it."""
    keys = map_keys(dict(first_stage.named_parameters()))
    source = None if keys is None else keys.sources.get("quant_conv.weight")
    return None if source is None else first_stage.get_submodule(source.rpartition(".")[0])


def borrow(first_stage: nn.Module, operation: Operation) -> Network:
    """The half of the host's VAE that ``operation`` needs, made of its own Parameters, or of views of them.

    Built for each picture (milliseconds): nothing of ours holds on to the weights afterwards, and a VAE that was
    switched, moved or converted is seen at once. The decoder starts where the host calls it, after
    ``post_quant_conv``; the encoder ends with ``quant_conv``, the moments.

    Raises:
        CheckpointError: when it is none that we have a network for.
    """
    return network_of(dict(first_stage.named_parameters()), PARTS[operation])


def network_of(own: Mapping[str, Tensor], parts: tuple[str, ...], video: bool = False) -> Network:
    """The ``parts`` of a network whose parameters these are, whatever the layout of their names.

    The network of a ``video`` is made of a copy: it wants the taps of a convolution one after the other.

    Raises:
        CheckpointError: when it is none that we have a network for.
    """
    parameters, shapes = _part(own, parts)
    # Weights that were loaded in inference mode can only be assigned in it.
    with torch.inference_mode(any(parameter.is_inference() for parameter in parameters.values())):
        network = recognise(shapes)
        if video and (keys := map_keys(own)) is not None:
            keys = keys.for_video()
            used = {name: source for name, source in keys.sources.items() if name.startswith(parts)}
            parameters = {name: keys.view(name, own[source]) for name, source in used.items()}
            network = of_video(network.config, {name: tuple(tensor.shape) for name, tensor in parameters.items()})
        try:
            assign(network, parameters)
        except RuntimeError as error:
            raise CheckpointError(f"The loaded VAE is of an unknown kind: {error}") from error
        return network


def need_bytes(ladder: Ladder, operation: Operation, shape: Sequence[int], side: int) -> int:
    """What a memory manager that brings the weights, and counts them, is to be asked for besides.

    With the copy of them that a video takes, which no host knows of.

    Args:
        shape: (B, C, height, width) of the sampler's latents, or of the pictures; with T before height of videos.
        side: latents of the VAE's along a side of one of the sampler's.
    """
    if operation is Operation.DECODE:
        height, width = (side * length for length in shape[-2:])
    else:
        height, width = (length // ladder.downscale for length in shape[-2:])
    vae, is_video = ladder.vae, frames.is_video_shape(shape)
    copied = sum(parameter.nbytes for parameter in vae.parameters()) if vae is not None and is_video else 0
    return ladder.need_bytes(operation, height, width, shape[2] if is_video else shape[0]) + copied


def compute_dtype(half: nn.Module) -> torch.dtype:
    """The dtype in which the host computes: that of the weights, which follows --no-half-vae and its options."""
    return next(half.parameters()).dtype


def memory_format(half: Any) -> torch.memory_format:
    """How results of the host's convolutions lie in memory: as their weights, which ``--opt-channelslast`` changes."""
    weight = next(parameter for parameter in half.parameters() if parameter.ndim == 4)
    channels_last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


class TAESDFolder:
    """The TAESDs on disk, where the host keeps them; they are never downloaded here."""

    def __init__(self, folder: Path, tell_once: Callable[[str, str], None]) -> None:
        self._folder, self._tell_once = folder, tell_once
        self._loaded: dict[tuple[str, int], TAESD] = {}

    def load(self, family: Family | None, operation: Operation) -> TAESD | None:
        """The half for a family of models that ``operation`` needs; None where it is not there or not sound."""
        for path in () if family is None else family.taesd_files(self._folder, operation.half):
            try:
                key = (str(path), os.stat(path).st_mtime_ns)
            except OSError:
                continue
            if key not in self._loaded:
                try:
                    network = load_vae(path, kind="TAESD", hash_file=False).tiny
                except CheckpointError as error:  # the exact routes do not need it
                    self._tell_once(f"taesd {path}", f"decoding by TAESD is not possible: {error}")
                    continue
                assert network is not None
                self._loaded[key] = network
            return self._loaded[key]
        return None
