"""The small random networks of all tests, their weights and their plain results.

Not of those that compare with a host in a process of its own (tests/webui/weights.py, whose weights are tame and the
same under every PyTorch, and tests/webui/make_checkpoint.py, which runs in the host's Python).
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import os
import types
from collections.abc import Sequence
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.device import PeakMemory
from vae_lib.engine import Compute, Edge, Padding, Tiling, decode, encode_moments
from vae_lib.engine.padding import ZEROS
from vae_lib.networks import (
    TAESD,
    Architecture,
    AutoencoderKL,
    AutoencoderKLConfig,
    Network,
    WanConfig,
    WanVAE,
    build,
)
from vae_lib.planning import Work

CPU = torch.device("cpu")
# Where `run_decode` and `run_encode` compute: the engine's tests can be run on any device that PyTorch has, as in
# VAE_GUARD_TEST_DEVICE=mps python -m pytest tests/engine/test_engine.py
DEVICE = torch.device(os.environ.get("VAE_GUARD_TEST_DEVICE", "cpu"))
if DEVICE.type == "cuda":
    torch.backends.cudnn.allow_tf32 = False  # its products are as coarse as half precision's
FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64

PADDINGS = [Padding(*edges) for edges in itertools.product(Edge, Edge)]

SMALL = AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
SD = AutoencoderKLConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=2)
WAN = WanConfig(widths=(8, 16, 24, 32), num_res_blocks=2, z_channels=4)
FLUX2 = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, embed_dim=32)
SD_SHAPED = AutoencoderKLConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)  # of 8 pixels a latent
# Wan 2.2's and Qwen-Image 2.1's
WAN22 = WanConfig((4, 8, 16, 16), 1, 6, decoder_ch=6, frames=(1, 2, 2), patch=2)
QWEN21 = WanConfig((2, 4, 8, 16, 16), 1, 4, 4, 4, decoder_ch=4, frames=(1, 2, 2, 2))


def sd3_like(**fields: object) -> AutoencoderKLConfig:
    """16 latent channels and no quant convs."""
    return AutoencoderKLConfig(z_channels=16, embed_dim=16, use_quant_conv=False, use_post_quant_conv=False, **fields)  # type: ignore[arg-type]


@overload
def network(config: AutoencoderKLConfig = ..., dtype: torch.dtype = ..., seed: int = ...) -> AutoencoderKL: ...
@overload
def network(config: WanConfig, dtype: torch.dtype = ..., seed: int = ...) -> WanVAE: ...
def network(config: Architecture = SMALL, dtype: torch.dtype = FP32, seed: int = 1) -> Any:
    """Random weights, always the same ones for a configuration and a seed; norms scale and shift too."""
    return _network(config, dtype, seed)  # one, however it was asked for


@functools.lru_cache(maxsize=32)
def _network(config: Architecture, dtype: torch.dtype, seed: int) -> Network:
    torch.manual_seed(seed)
    vae = build(config)
    for name, parameter in vae.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=float(name.endswith(("weight", "gamma"))), std=0.3)
    return vae.to(dtype).eval().requires_grad_(False)


def own_network(config: AutoencoderKLConfig = SMALL) -> AutoencoderKL:
    """The same, for a test that changes it."""
    return copy.deepcopy(network(config))


@functools.lru_cache(maxsize=4)
def taesd(latent_channels: int = 4, **halves: bool) -> TAESD:
    torch.manual_seed(2)
    return TAESD(latent_channels, **halves).eval().requires_grad_(False)


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """A copy, as a file would hold it."""
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def _padded_by_axis(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As extensions for one-axis seamless textures replace ``_conv_forward``."""
    for edge, sides in (
        (self.padding_by_axis.width, (1, 1, 0, 0)),
        (self.padding_by_axis.height, (0, 0, 1, 1)),
    ):
        x = F.pad(x, sides, mode="constant" if edge is Edge.ZEROS else edge.value)
    return F.conv2d(x, weight, bias, self.stride, groups=self.groups)


def padded(net: nn.Module, padding: Padding) -> nn.Module:
    """The network with every padded convolution changed, as the WebUI's Tiling changes them."""
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.padding == (1, 1):
            if padding.height is padding.width:
                module.padding_mode = padding.height.value
                module._reversed_padding_repeated_twice = [1, 1, 1, 1]
            else:
                module.padding_by_axis = padding
                module._conv_forward = types.MethodType(_padded_by_axis, module)
    return net


def latents_for(config: Architecture, height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.latent_channels, height, width, generator=generator)


def images(height: int, width: int, batch: int = 1, seed: int = 0, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, height, width, generator=generator) * 2 - 1


def run_decode(
    vae: AutoencoderKL, latents: Tensor, tiling: Tiling, dtype: torch.dtype = FP32, padding: Padding = ZEROS
) -> Tensor:
    return decode(vae, latents.to(DEVICE), tiling, Compute(DEVICE, dtype, padding, CPU))


def run_encode(
    vae: AutoencoderKL, pictures: Tensor, tiling: Tiling, dtype: torch.dtype = FP32, padding: Padding = ZEROS
) -> tuple[Tensor, Tensor]:
    return encode_moments(vae, pictures.to(DEVICE), tiling, Compute(DEVICE, dtype, padding, CPU))


def live_tensors() -> int:
    """How many there are that somebody holds."""
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def distance(result: Tensor, wanted: Tensor) -> float:
    """Largest difference, in units of the wanted tensor's largest number (at least 1)."""
    assert result.shape == wanted.shape
    return float((result.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1))


def measured_peak(work: Work, vae: AutoencoderKL, tiling: Tiling, picture: tuple[int, int] | None = None) -> int:
    """Peak bytes of doing ``work`` for real; ``vae`` has its weights where the work says."""
    if work.operation == "decode":
        assert work.config is not None
        source = latents_for(work.config, work.height, work.width, work.batch).to(work.dtype)
    else:
        assert work.config is not None
        source = images(*(picture or work.pixels), work.batch, channels=work.config.in_channels).to(work.dtype)
    run = decode if work.operation == "decode" else encode_moments
    with PeakMemory(CPU) as peak:
        run(vae, source, tiling, Compute(CPU, work.dtype, work.padding))
    return peak.bytes


def total_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
