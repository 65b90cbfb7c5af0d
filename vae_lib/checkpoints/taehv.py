"""The weights of TAEHV's decoder, as those of a network that decodes one picture (``vae_lib.networks.taesd``).

Each of our tensors is made of one of the file's. Where a layer sees two frames, that is (C, 2 C, 3, 3): the first C for
the frame itself, the others for the one before it. Source: github.com/madebyollin/taehv, ``taehv.py``.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vae_lib.networks.config import MAX_CHANNELS

# The layers that see two frames, and the one that makes the last frame and the one before it
_BOTH, _LATER, _LAST = ("15", "16"), "17", "18"
_GROW = re.compile(r"decoder\.(\d{1,3})\.conv\.weight")


def our_name(key: str) -> str:
    """A 1x1 convolution, ``decoder.7.conv.weight``, changes places with the upsampling before it."""
    return _GROW.sub(lambda match: f"decoder.{int(match[1]) - 1}.weight", key)


def of_a_picture(key: str, stored: Tensor) -> Tensor:
    """Our tensor ``key``, made of the file's."""
    layer, _, name = key.removeprefix("decoder.").partition(".")
    if name == "conv.0.weight":
        now, past = stored.chunk(2, 1)
        if layer in _BOTH:  # nothing is before the first frame
            return torch.cat([torch.cat([now, torch.zeros_like(past)], 1), torch.cat([past, now], 1)])
        return torch.cat([past, now], 1) if layer == _LATER else now
    if layer in ("14", *_BOTH):
        return torch.cat([stored, stored])
    return stored.chunk(2)[1] if layer == _LAST else stored


def shape_of(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of our tensor ``key``; a shape that TAEHV's has not stays as it is, and is refused with its name."""
    axes = 4 if key.endswith("weight") else 1
    if len(shape) != axes or max(shape) > MAX_CHANNELS or any(size < 1 or size % 2 for size in shape[:2]):
        return shape
    return tuple(of_a_picture(key, torch.empty(shape, device="meta")).shape)
