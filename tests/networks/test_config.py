"""Inferring the configuration from shapes alone."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lib.errors import CheckpointError
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig

Shapes = dict[str, tuple[int, ...]]


def shapes_of(config: AutoencoderKLConfig) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in AutoencoderKL(config).state_dict().items()}


@st.composite
def configs(draw: st.DrawFn) -> AutoencoderKLConfig:
    has_encoder, has_decoder = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    use_quant_conv = draw(st.booleans())
    use_post_quant_conv = draw(st.booleans())
    z_channels = draw(st.integers(1, 16))
    multiples = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    if not has_encoder:
        multiples[0] = 1
    quantized = use_quant_conv or use_post_quant_conv
    return AutoencoderKLConfig(
        in_channels=draw(st.integers(1, 4)) if has_encoder else 3,
        out_channels=draw(st.integers(1, 4)) if has_decoder else 3, ch=32 * draw(st.integers(1, 4)),
        ch_mult=tuple(multiples), num_res_blocks=draw(st.integers(1, 3)), z_channels=z_channels,
        embed_dim=draw(st.integers(1, 16)) if quantized else z_channels, use_quant_conv=use_quant_conv,
        use_post_quant_conv=use_post_quant_conv, has_encoder=has_encoder, has_decoder=has_decoder,
    )  # fmt: skip


@pytest.mark.slow
@given(configs())
def test_any_configuration_is_inferred_from_its_shapes(config: AutoencoderKLConfig) -> None:
    assert AutoencoderKLConfig.from_state_dict(shapes_of(config)) == config


@pytest.mark.slow
@given(configs(), st.data())
def test_a_missing_key_or_a_changed_shape_never_crashes(config: AutoencoderKLConfig, data: st.DataObject) -> None:
    shapes = shapes_of(config)
    key = data.draw(st.sampled_from(sorted(shapes)))
    change = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 2**31), max_size=5)))
    if change is None:
        del shapes[key]
    else:
        shapes[key] = tuple(change)
    with contextlib.suppress(CheckpointError):
        found = AutoencoderKLConfig.from_state_dict(shapes)
        assert min(found.widths) >= 32


def test_latent_channels_and_downscale() -> None:
    assert AutoencoderKLConfig().latent_channels == 4
    assert AutoencoderKLConfig().downscale == 8
    sd3 = AutoencoderKLConfig(z_channels=16, use_quant_conv=False, use_post_quant_conv=False)
    assert sd3.latent_channels == 16
    assert AutoencoderKLConfig(z_channels=8, embed_dim=3).latent_channels == 3
    assert AutoencoderKLConfig(ch_mult=(1, 2)).downscale == 2


def change(shapes: Shapes, *, drop: str = "", add: Shapes | None = None) -> Shapes:
    kept = {key: shape for key, shape in shapes.items() if not (drop and key.startswith(drop))}
    return kept | (add or {})


SMALL = AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)


@pytest.mark.parametrize(
    ("drop", "add", "sentence"),
    [
        ("encoder.conv_in", {}, r"'encoder.conv_in.weight' is missing"),
        ("decoder.conv_out", {}, r"'decoder.conv_out.weight' is missing"),
        ("decoder.up.0", {}, r"blocks of 'decoder.up' are missing"),
        ("decoder.up.1.block.1", {}, r"levels of 'decoder.up' have \[1, 2\] blocks"),
        ("decoder.up", {}, r"blocks of 'decoder.up' are missing"),
        ("", {"encoder.down.1.attn.0.q.weight": (64, 64, 1, 1)}, "attention inside its levels"),
        ("", {"quantize.embedding.weight": (16, 4)}, "VQ autoencoder"),
        ("", {"encoder.conv_in.weight": (32, 3, 3, 3, 3)}, "video VAE"),
        ("", {"encoder.conv_in.weight": (32, 3)}, "not an image VAE"),
        ("", {"encoder.conv_out.weight": (7, 64, 3, 3)}, "no mean and variance"),
        ("", {"decoder.conv_in.weight": (64, 0, 3, 3)}, "damaged"),
        ("", {"quant_conv.weight": (1, 8, 1, 1)}, None),
        ("post_quant", {"quant_conv.weight": (1, 8, 1, 1)}, "without channels"),
        ("", {"decoder.conv_in.weight": (64, 5, 3, 3)}, "do not belong together"),
        ("", {"encoder.conv_in.weight": (33, 3, 3, 3)}, "33 channels"),
        ("quant_conv", {}, None),
    ],
)
def test_what_is_wrong_is_said(drop: str, add: Shapes, sentence: str | None) -> None:
    shapes = change(shapes_of(SMALL), drop=drop, add=add)
    if sentence is None:
        AutoencoderKLConfig.from_state_dict(shapes)
    else:
        with pytest.raises(CheckpointError, match=sentence):
            AutoencoderKLConfig.from_state_dict(shapes)


def test_weights_without_a_vae() -> None:
    with pytest.raises(CheckpointError, match="no VAE"):
        AutoencoderKLConfig.from_state_dict({"lora_unet.alpha": ()})
