"""AutoencoderKL against diffusers' implementation of the same architecture, on random weights."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL as ReferenceVAE

from benchmarks.peers import diffusers_network
from vae_lib.checkpoints import convert_to_ldm
from vae_lib.errors import CheckpointError
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig, assign

CASES = {
    "sd": AutoencoderKLConfig(ch=32),
    "sd3": AutoencoderKLConfig(ch=32, z_channels=16, embed_dim=16, use_quant_conv=False, use_post_quant_conv=False),
    "two levels": AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),
    "three blocks, odd latents": AutoencoderKLConfig(
        ch=64, ch_mult=(1, 3, 2), num_res_blocks=3, z_channels=5, embed_dim=5
    ),
    "one level": AutoencoderKLConfig(ch=32, ch_mult=(1,), num_res_blocks=2),
    "widths that are no multiples": AutoencoderKLConfig(ch=64, ch_mult=(1, 1.5), num_res_blocks=1),
}


def reference(config: AutoencoderKLConfig) -> ReferenceVAE:
    """diffusers' VAE of the same shape, with random weights, also of the norms."""
    vae: ReferenceVAE = diffusers_network(config)
    for name, parameter in vae.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return vae.eval().double().requires_grad_(False)  # float64: rounding does not blur the comparison


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def pair(request: pytest.FixtureRequest) -> tuple[AutoencoderKL, ReferenceVAE]:
    theirs = reference(request.param)
    weights = convert_to_ldm(theirs.state_dict())
    config = AutoencoderKLConfig.from_state_dict({key: value.shape for key, value in weights.items()})
    assert config == request.param
    ours = AutoencoderKL(config).double()
    ours.load_state_dict(weights)  # strict: all names and shapes agree
    return ours.requires_grad_(False), theirs


@pytest.mark.slow
def test_decode_agrees_with_diffusers(pair: tuple[AutoencoderKL, ReferenceVAE]) -> None:
    ours, theirs = pair
    latents = torch.randn(2, ours.latent_channels, 5, 7, dtype=torch.float64)
    image = ours.decode(latents)
    assert image.shape == (2, 3, 5 * ours.downscale, 7 * ours.downscale)
    torch.testing.assert_close(image, theirs.decode(latents).sample, atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
def test_encode_agrees_with_diffusers(pair: tuple[AutoencoderKL, ReferenceVAE], size: tuple[int, int]) -> None:
    ours, theirs = pair
    image = torch.rand(1, 3, *size, dtype=torch.float64) * 2 - 1
    distribution = theirs.encode(image).latent_dist
    mean, log_variance = ours.encode_moments(image)
    torch.testing.assert_close(mean, distribution.mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(log_variance, distribution.logvar, atol=1e-9, rtol=0)
    assert torch.equal(ours.encode(image), mean)
    torch.testing.assert_close(ours(image), theirs.decode(distribution.mean).sample, atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["sd", "sd3"])
def test_single_precision_agrees_too(case: str) -> None:
    theirs = reference(CASES[case]).float()
    ours = AutoencoderKL(CASES[case]).requires_grad_(False)
    ours.load_state_dict(convert_to_ldm(theirs.state_dict()))
    latents = torch.randn(1, ours.latent_channels, 6, 6)
    expected = theirs.decode(latents).sample
    torch.testing.assert_close(ours.decode(latents), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_log_variance_is_clamped_as_in_training() -> None:
    vae = AutoencoderKL(CASES["two levels"])
    assert vae.quant_conv is not None
    with torch.no_grad():
        vae.quant_conv.bias[vae.latent_channels :] = torch.tensor([1e4, -1e4, 0.0, 0.0])
        log_variance = vae.encode_moments(torch.zeros(1, 3, 8, 8))[1]
    assert log_variance.max() == 20
    assert log_variance.min() == -30


def test_building_on_the_meta_device_and_sharing_parameters() -> None:
    config = CASES["two levels"]
    owner = AutoencoderKL(config)
    with torch.device("meta"):
        guest = AutoencoderKL(config)
    assert all(parameter.is_meta for parameter in guest.parameters())
    assign(guest, dict(owner.named_parameters()))
    with pytest.raises(RuntimeError, match=r"decoder\.conv_in\.bias is of shape None, and .* is wanted"):
        assign(guest, {n: p for n, p in owner.named_parameters() if n != "decoder.conv_in.bias"})
    theirs = dict(guest.named_parameters())
    for name, parameter in owner.named_parameters():
        assert theirs[name].data_ptr() == parameter.data_ptr()
    latents = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        assert torch.equal(guest.decode(latents), owner.decode(latents))
        assert owner.decoder is not None
        owner.decoder.conv_out.bias += 1  # one set of weights: the guest sees it
        assert torch.equal(guest.decode(latents), owner.decode(latents))


def test_half_a_vae_does_its_half_and_says_so_of_the_other() -> None:
    decoder_only = AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, has_encoder=False)
    encoder_only = AutoencoderKLConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, has_decoder=False)
    with torch.no_grad():
        assert AutoencoderKL(decoder_only).decode(torch.randn(1, 4, 2, 3)).shape == (1, 3, 4, 6)
        assert AutoencoderKL(encoder_only).encode(torch.randn(1, 3, 4, 6)).shape == (1, 4, 2, 3)
    with pytest.raises(CheckpointError, match="only a decoder"):
        AutoencoderKL(decoder_only).encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(CheckpointError, match="only an encoder"):
        AutoencoderKL(encoder_only).decode(torch.zeros(1, 4, 8, 8))


def test_the_parameters_have_the_names_of_the_original_checkpoints() -> None:
    with torch.device("meta"):
        state_dict = AutoencoderKL(AutoencoderKLConfig()).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    assert len(shapes) == 248  # as in vae-ft-mse-840000-ema-pruned
    expected = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.downsample.conv.bias": (512,),
        "encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "encoder.conv_out.weight": (8, 512, 3, 3),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "decoder.mid.block_2.norm1.weight": (512,),
        "decoder.mid.attn_1.norm.weight": (512,),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.1.block.2.conv2.weight": (256, 256, 3, 3),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.norm_out.weight": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert "encoder.down.3.downsample.conv.weight" not in shapes
