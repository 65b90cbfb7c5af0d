"""Key layouts: whatever way a VAE is stored, the same tensors come out under the same names."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from vae_lib.checkpoints import convert_to_ldm, layout_of
from vae_lib.errors import CheckpointError
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig

Weights = dict[str, torch.Tensor]

ATTENTION = {
    "attn_1.norm.": "attn_1.group_norm.", "attn_1.q.": "attn_1.to_q.", "attn_1.k.": "attn_1.to_k.",
    "attn_1.v.": "attn_1.to_v.", "attn_1.proj_out.": "attn_1.to_out.0.",
}  # fmt: skip
MIDDLE = {
    ".mid.block_1.": ".mid_block.resnets.0.", ".mid.block_2.": ".mid_block.resnets.1.",
    ".nin_shortcut.": ".conv_shortcut.",
}  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> AutoencoderKLConfig:
    quantized = draw(st.booleans())
    z_channels = draw(st.sampled_from([4, 16]))
    return AutoencoderKLConfig(
        ch=32,
        ch_mult=tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))),
        num_res_blocks=draw(st.integers(1, 3)),
        z_channels=z_channels,
        embed_dim=z_channels,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
    )


def distinct_weights(config: AutoencoderKLConfig) -> Weights:
    """A state dict in which every tensor differs from every other, without the cost of random numbers."""
    with torch.device("meta"):
        state_dict = AutoencoderKL(config).state_dict()
    return {key: torch.full(value.shape, float(i)) for i, (key, value) in enumerate(state_dict.items())}


def to_diffusers(weights: Weights, config: AutoencoderKLConfig) -> Weights:
    """By diffusers' own conversion of ldm checkpoints; attention weights become linear."""
    levels = ["DownEncoderBlock2D"] * len(config.ch_mult)
    described = {"down_block_types": levels, "up_block_types": levels}
    converted: Weights = convert_ldm_vae_checkpoint(dict(weights), described)
    return converted


def with_old_attention_names(weights: Weights) -> Weights:
    """The names of diffusers before 0.15."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    return {
        re.sub(r"(?<=attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda match: names[match[1]], key): value
        for key, value in weights.items()
    }


def with_convs_for_attention(weights: Weights) -> Weights:
    return {
        key: value[:, :, None, None] if "attentions.0" in key and value.ndim == 2 else value
        for key, value in weights.items()
    }


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert torch.equal(found[key], value), key


@pytest.mark.slow
@given(configs(), st.booleans(), st.booleans(), st.sampled_from(["", "vae.", "first_stage_model."]))
def test_any_vae_comes_back_from_the_layout_of_diffusers(
    config: AutoencoderKLConfig, old_names: bool, convs: bool, prefix: str
) -> None:
    weights = distinct_weights(config)
    diffusers = to_diffusers(weights, config)
    assert len(diffusers) == len(weights)
    if old_names:
        diffusers = with_old_attention_names(diffusers)
    if convs:
        diffusers = with_convs_for_attention(diffusers)
    diffusers = {prefix + key: value for key, value in diffusers.items()}
    assert layout_of(diffusers) == "diffusers"
    assert_same(convert_to_ldm(diffusers), weights)


@pytest.mark.slow
@given(configs(), st.sampled_from(["", "first_stage_model.", "vae.", "model.first_stage_model.", "module."]))
def test_any_prefix_is_taken_off_and_the_rest_left_out(config: AutoencoderKLConfig, prefix: str) -> None:
    weights = distinct_weights(config)
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(1),
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.logvar": torch.zeros(1),
        "model_ema.decay": torch.zeros(1),
        "model_ema.decoderconv_inweight": torch.zeros(1),
        "betas": torch.zeros(1),
    }
    stored = {prefix + key: value for key, value in weights.items()} | others
    assert layout_of(stored) == ("ldm" if prefix in ("", "module.") else "ldm in a checkpoint")
    assert_same(convert_to_ldm(stored), weights)


def test_diffusers_own_vae_is_read(weights: Weights) -> None:
    theirs = ReferenceVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
    )
    converted = convert_to_ldm(theirs.state_dict())
    assert converted.keys() == weights.keys()
    assert torch.equal(
        converted["decoder.up.3.block.0.conv1.weight"], theirs.decoder.up_blocks[0].resnets[0].conv1.weight
    )


@pytest.mark.parametrize("names", [ATTENTION, {**ATTENTION, **MIDDLE}])
def test_a_file_that_was_half_converted_is_read(names: dict[str, str], weights: Weights) -> None:
    """ldm's names with diffusers' in the middle: it was called incomplete, and every number is there."""
    stored = dict(weights)
    for ours, theirs in names.items():
        stored = {key.replace(ours, theirs): value for key, value in stored.items()}
    assert stored.keys() != weights.keys()
    converted = convert_to_ldm(stored)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[key], weights[key]) for key in weights)


def test_a_tensor_that_is_there_under_both_names_is_not_lost(weights: Weights) -> None:
    stored = weights | {"decoder.mid.attn_1.to_q.weight": torch.zeros(1)}
    assert set(convert_to_ldm(stored)) - set(weights) == {"decoder.mid.attn_1.to_q.weight"}


def test_tensors_are_shared_not_copied(weights: Weights) -> None:
    converted = convert_to_ldm({"first_stage_model." + key: value for key, value in weights.items()})
    assert all(converted[key].data_ptr() == value.data_ptr() for key, value in weights.items())


def test_layouts_of_taesd(taesd_weights: Weights) -> None:
    assert layout_of(taesd_weights) == "taesd"
    assert layout_of("taesd_" + key for key in taesd_weights) == "taesd"
    for half in ("encoder.", "decoder."):
        assert layout_of(key.removeprefix(half) for key in taesd_weights if key.startswith(half)) == "taesd"
    assert layout_of(["encoder.layers.3.conv.0.weight", "decoder.layers.2.conv.0.weight"]) == "taesd (diffusers)"
    with pytest.raises(CheckpointError, match="TAESD"):
        convert_to_ldm(taesd_weights)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.up_blocks.0.attentions.0.to_q.lora_A.weight"], "a LoRA"),
        (["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"], "a LoRA"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder"),
        (["cond_stage_model.transformer.text_model.embeddings.position_ids"], "a text encoder"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a text encoder"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a diffusion model without its VAE"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "a diffusion model without its VAE"),
        (["double_blocks.0.img_attn.qkv.weight"], "a diffusion model without its VAE"),
        (["emb_params"], "a textual inversion embedding"),
        (["clip_g", "clip_l"], "a textual inversion embedding"),
        (["control_model.zero_convs.0.0.weight"], "a ControlNet"),
        (
            ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
            "a ControlNet",
        ),
        (["vision_model.encoder.layers.0.mlp.fc1.weight"], "an image encoder"),
        (["ip_adapter.1.to_k_ip.weight", "image_proj.proj.weight"], "an IP-Adapter"),
        (["conv_first.weight", "body.0.rdb1.conv1.weight"], "an upscaler"),
        (["decoder.head.0.gamma", "per_channel_statistics.mean-of-means"], "a video VAE"),
        (["something.weight"], "something unknown"),
        ([], "an empty set of weights"),
    ],
)
def test_what_is_no_vae_is_named(keys: list[str], what: str) -> None:
    assert layout_of(keys) is None
    with pytest.raises(CheckpointError, match=f"This is {what}.*, not a VAE"):
        convert_to_ldm(dict.fromkeys(keys, torch.zeros(1)))


@given(st.lists(st.text(max_size=40), max_size=10))
def test_arbitrary_keys_are_no_vae_and_no_crash(keys: list[str]) -> None:
    assert layout_of(keys) is None
