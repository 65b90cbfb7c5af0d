"""TAEHV frame by frame with its memory, as its makers run it, on the weights of a file; and such weights."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCKS = {3: 256, 4: 256, 5: 256, 9: 128, 10: 128, 11: 128, 15: 64, 16: 64, 17: 64}  # layer: channels
GROWS = {7: (256, 256), 13: (256, 128), 19: (128, 64)}  # 1x1: out, in; two frames where out is twice as wide
CONVS = {1: (256, 16), 8: (128, 256), 14: (64, 128), 20: (64, 64), 22: (3, 64)}  # 3x3: out, in


@functools.lru_cache(maxsize=1)
def weights() -> dict[str, Tensor]:
    """Random ones in half precision, by the names of ``taew2_1``; of the encoder only a few."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        inputs = shape[1] * shape[2] * shape[3] if len(shape) == 4 else 100
        return torch.randn(shape, generator=generator).mul_((2 / inputs) ** 0.5).half()

    made = {"encoder.0.weight": random(64, 3, 3, 3), "encoder.2.conv.weight": random(64, 128, 1, 1)}
    for layer, (out, channels) in CONVS.items():
        made[f"decoder.{layer}.weight"] = random(out, channels, 3, 3)
    for layer, (out, channels) in GROWS.items():
        made[f"decoder.{layer}.conv.weight"] = random(out, channels, 1, 1)
    for layer, channels in BLOCKS.items():
        for conv, inputs in ((0, 2 * channels), (2, channels), (4, channels)):
            made[f"decoder.{layer}.conv.{conv}.weight"] = random(channels, inputs, 3, 3)
            made[f"decoder.{layer}.conv.{conv}.bias"] = random(channels)
    return made | {"decoder.1.bias": random(256), "decoder.22.bias": random(3)}


def of_another_model(channels: int = 48, out: int = 12) -> dict[str, Tensor]:
    """Those of its sides are others; that of Wan 2.2 5B, with 2x2 pixels as channels."""
    sides = {"decoder.1.weight": (256, channels, 3, 3), "decoder.22.weight": (out, 64, 3, 3)}
    return weights() | {key: torch.zeros(shape).half() for key, shape in sides.items()}


def frames(stored: dict[str, Tensor], latents: Tensor) -> list[Tensor]:
    """The four frames in [0, 1] of one frame of latents; the last is the picture."""
    memory: dict[int, Tensor] = {}

    def conv(name: str, x: Tensor) -> Tensor:
        weight, bias = (stored.get(f"decoder.{name}.{kind}") for kind in ("weight", "bias"))
        assert weight is not None
        return F.conv2d(x, weight.to(x), None if bias is None else bias.to(x), padding=weight.shape[-1] // 2)

    def from_layer(layer: int, x: Tensor) -> list[Tensor]:
        if layer == 0:
            x = torch.tanh(x / 3) * 3
        elif layer in BLOCKS:
            past = memory.get(layer, torch.zeros_like(x))
            memory[layer] = x
            h = torch.relu(conv(f"{layer}.conv.0", torch.cat([x, past], 1)))
            h = torch.relu(conv(f"{layer}.conv.2", h))
            x = torch.relu(conv(f"{layer}.conv.4", h) + x)
        elif layer in GROWS:
            made = conv(f"{layer}.conv", x).chunk(GROWS[layer][0] // GROWS[layer][1], 1)
            return [frame for each in made for frame in from_layer(layer + 1, each)]
        elif layer in CONVS:
            x = conv(str(layer), x)
        else:
            x = torch.relu(x) if layer in (2, 21) else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return [x] if layer == 22 else from_layer(layer + 1, x)

    return from_layer(0, latents)
