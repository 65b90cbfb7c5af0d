"""Wan's published network of videos, as diffusers has it, and ours with its weights, borrowed as a host's are."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from vae_lib.guard.borrow import network_of
from vae_lib.networks import WanVAE

# The shapes that diffusers' AutoencoderKLWan is given.
WAN21: dict[str, Any] = {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "z_dim": 4, "num_res_blocks": 1}
WAN22: dict[str, Any] = {
    **WAN21, "base_dim": 4, "decoder_base_dim": 12, "temperal_downsample": [False, True, True],
    "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
}  # fmt: skip
FULL_WIDTH: dict[str, Any] = {}
SHAPES = {"2.1": WAN21, "2.2": WAN22}


def published(shape: dict[str, Any], dtype: torch.dtype) -> tuple[Any, WanVAE]:
    """diffusers' network with random weights, and ours with the same."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(4)
    theirs = AutoencoderKLWan(**shape)
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=1, std=0.3)
    for module in theirs.modules():
        if type(module).__name__ == "WanUpsample":  # theirs rounds to float32
            module.forward = functools.partial(nn.Upsample.forward, module)
    theirs = theirs.to(dtype).eval().requires_grad_(False)
    ours = network_of(theirs.state_dict(), ("",), video=True)
    assert isinstance(ours, WanVAE)
    return theirs, ours
