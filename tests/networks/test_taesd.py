"""TAESD against diffusers' AutoencoderTiny, and how far its pixels look."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn

from vae_lib.errors import CheckpointError
from vae_lib.networks import TAESD


def from_diffusers(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Written down apart from the package's own conversion: the decoder's layers come after a clamp."""
    renamed = {}
    for key, value in state_dict.items():
        half, layer, rest = re.fullmatch(r"(\w+)\.layers\.(\d+)\.(.+)", key).groups()  # type: ignore[union-attr]
        renamed[f"{half}.{int(layer) + (half == 'decoder')}.{rest}"] = value
    return renamed


@pytest.mark.parametrize("channels", [4, 16])
def test_agrees_with_diffusers(channels: int) -> None:
    theirs = AutoencoderTiny(latent_channels=channels).eval().requires_grad_(False)
    ours = TAESD(channels).requires_grad_(False)
    ours.load_state_dict(from_diffusers(theirs.state_dict()))
    latents = torch.randn(2, channels, 5, 7) * 4  # beyond the soft clamp too
    image = torch.rand(2, 3, 40, 24) * 2 - 1
    torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode(image), theirs.encode(image).latents, atol=1e-5, rtol=0)
    expected = theirs.decode(theirs.encode(image).latents).sample
    torch.testing.assert_close(ours(image), expected, atol=1e-5, rtol=0)


def test_the_layers_are_numbered_as_in_the_published_files() -> None:
    with torch.device("meta"):
        state_dict = TAESD(4).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    expected = {
        "encoder.0.weight": (64, 3, 3, 3),
        "encoder.1.conv.4.bias": (64,),
        "encoder.2.weight": (64, 64, 3, 3),
        "encoder.14.weight": (4, 64, 3, 3),
        "decoder.1.weight": (64, 4, 3, 3),
        "decoder.3.conv.0.weight": (64, 64, 3, 3),
        "decoder.7.weight": (64, 64, 3, 3),
        "decoder.18.conv.2.weight": (64, 64, 3, 3),
        "decoder.19.weight": (3, 64, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    assert "decoder.7.bias" not in shapes
    assert "encoder.2.bias" not in shapes


def test_flux2s_has_pools_at_the_latents_resolution() -> None:
    """Named as in taef2_decoder.pth and taef2_encoder.pth; each adds to its block's input."""
    torch.manual_seed(0)
    taesd = TAESD(32).requires_grad_(False)
    shapes = {key: tuple(value.shape) for key, value in taesd.state_dict().items() if "pool" in key}
    assert {key.split(".pool")[0] for key in shapes} == {
        *(f"decoder.{index}" for index in (3, 4, 5)),
        *(f"encoder.{index}" for index in (11, 12, 13)),
    }
    assert shapes["decoder.3.pool.0.weight"] == (256, 64, 1, 1)
    assert shapes["decoder.3.pool.1.weight"] == shapes["decoder.3.pool.1.bias"] == (256,)
    assert shapes["decoder.3.pool.3.weight"] == (64, 256, 1, 1)
    block: Any = taesd.get_submodule("decoder.4")
    x = torch.randn(1, 64, 6, 5)
    wide = block.pool[0](x).view(1, 4, 64, 6, 5)  # a group's mean and variance are those of the whole picture
    mean, variance = wide.mean((2, 3, 4), keepdim=True), wide.var((2, 3, 4), keepdim=True, unbiased=False)
    normed = ((wide - mean) / torch.sqrt(variance + 1e-5)).view(1, 256, 6, 5)
    pooled = x + block.pool[3](torch.relu(normed))  # its weight and bias are 1 and 0 here
    torch.testing.assert_close(block(x), torch.relu(block.conv(pooled) + pooled), atol=1e-5, rtol=1e-5)


def test_packed_latents_are_unpacked() -> None:
    """FLUX.2's sampler has squares of 2 x 2 latents as channels; those that are unpacked stay."""
    packed = torch.arange(128 * 2 * 3.0).view(1, 128, 2, 3)
    unpacked = TAESD(32, encoder=False).unpacked(packed)
    assert unpacked.shape == (1, 32, 4, 6)
    assert unpacked[0, 1, 2, 5] == packed[0, 5, 1, 2]  # channel 1, upper right of its square
    assert TAESD(32, encoder=False).unpacked(unpacked) is unpacked
    assert TAESD(4, encoder=False).unpacked(packed) is packed  # of another family: refused where it is run


def transparent(half: nn.Module) -> nn.Module:
    """Weights under which zeros stay zeros, and every influence shows: none is negative, so none cancels."""
    for parameter in half.parameters():
        nn.init.constant_(parameter, 1 / 64 if parameter.ndim > 1 else 0.0)
    return half.double().requires_grad_(False)


@pytest.mark.parametrize("video", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_decoder_reach_is_exactly_how_far_a_latent_is_seen(video: bool) -> None:
    taesd = TAESD(4, encoder=False, video=video)
    assert taesd.decoder is not None
    decoder, reach = transparent(taesd.decoder), taesd.decoder_reach
    start = reach + 4

    def is_seen(row: int) -> bool:
        latents = torch.zeros(1, 4, 2 * start + 1, 1, dtype=torch.float64)
        latents[..., row, :] = 1
        return bool(decoder(latents)[..., 8 * start : 8 * (start + 1), :].any())

    assert is_seen(start - reach)
    assert is_seen(start + reach)
    assert not is_seen(start - reach - 1)
    assert not is_seen(start + reach + 1)


def test_encoder_reach_is_exactly_how_far_a_pixel_is_seen() -> None:
    taesd = TAESD(4, decoder=False)
    assert taesd.encoder is not None
    encoder, reach = transparent(taesd.encoder), taesd.encoder_reach
    start = reach // 8 + 2

    def is_seen(row: int) -> bool:
        image = torch.zeros(1, 3, 8 * (2 * start + 1), 8, dtype=torch.float64)
        image[..., row, :] = 1
        return bool(encoder(image)[..., start, :].any())

    assert is_seen(8 * start - reach)
    assert not is_seen(8 * start - reach - 1)
    assert not is_seen(8 * start + 7 + reach + 1)  # below, it is a little less: the strided convs look up


def test_half_a_taesd_says_what_it_lacks() -> None:
    with pytest.raises(CheckpointError, match="only a decoder"):
        TAESD(4, encoder=False).encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(CheckpointError, match="only an encoder"):
        TAESD(4, decoder=False).decode(torch.zeros(1, 4, 8, 8))
    assert TAESD(4, encoder=False).encoder_reach == 0
    assert TAESD(4, decoder=False).decoder_reach == 0
