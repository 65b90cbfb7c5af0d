"""VAEs that are not what they seem, one of each kind: nothing in them is hostile, and none can be decoded with."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    VQModel,
)
from safetensors.torch import save_file

from tests.networks.small import SD_SHAPED, network, taesd, weights_of

Weights = dict[str, torch.Tensor]

_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def _contents() -> dict[str, tuple[Weights, str]]:
    good, tiny = weights_of(network(SD_SHAPED)), weights_of(taesd())
    encoder = {key: value for key, value in good.items() if key.startswith(("encoder.", "quant_conv."))}
    no_attention = {key: value for key, value in good.items() if ".attn_1." not in key}
    theirs = AutoencoderKL(**_BLOCKS, block_out_channels=(32, 64), mid_block_add_attention=False)
    dc_ae = AutoencoderDC(
        latent_channels=4, attention_head_dim=8, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
    )  # fmt: skip
    masked = AsymmetricAutoencoderKL(
        **_BLOCKS, down_block_out_channels=(32, 64), up_block_out_channels=(32, 64), layers_per_down_block=1
    )
    video = AutoencoderKLTemporalDecoder(down_block_types=_BLOCKS["down_block_types"], block_out_channels=(32, 64))
    nan = good | {"decoder.conv_out.bias": torch.tensor([0.0, float("nan"), 0.0])}
    return {
        "missing tensors": ({k: v for k, v in good.items() if "norm_out" not in k}, "incomplete VAE"),
        "vae-00001-of-00002": (
            {k: v for k, v in good.items() if k.startswith("decoder.up")},
            "is one of several files that a VAE was split into",
        ),
        "misshapen tensors": (good | {"decoder.norm_out.bias": torch.zeros(33)}, r"has shape \(33,\)"),
        "an unknown tensor": (good | {"decoder.mid.extra": torch.zeros(3)}, "unknown kind: it has"),
        "no middle": ({k: v for k, v in good.items() if ".mid." not in k}, "incomplete VAE"),
        "no attention": (no_attention, "without attention in its middle"),
        "no attention, diffusers": (dict(theirs.state_dict()), "without attention in its middle"),
        "DC-AE": (dict(dc_ae.state_dict()), r"is a deep-compression autoencoder \(DC-AE\)"),
        "DC-AE of its makers": (
            {"encoder.stages.0.op_list.0.main.conv1.conv.weight": torch.zeros(1)},
            r"is a deep-compression autoencoder \(DC-AE\)",
        ),
        "a consistency decoder": (
            encoder | {"decoder_unet.conv_in.weight": torch.zeros(1), "means": torch.zeros(4)},
            "is a consistency decoder",
        ),
        "for inpainting": (dict(masked.state_dict()), "takes the masked picture as well"),
        "a video VAE": (dict(video.state_dict()), "is a video VAE"),
        "with a codebook": (
            dict(VQModel(**_BLOCKS, block_out_channels=(32, 64)).state_dict()),
            "VQ autoencoder",
        ),
        "a TAESD with pooled norms": (
            tiny | {"decoder.3.pool.0.weight": torch.zeros(1)},
            "unknown kind: it has",
        ),
        "half a TAESD": ({k: v for k, v in tiny.items() if k != "decoder.19.weight"}, "incomplete VAE"),
        "integers": ({k: v.to(torch.int8) for k, v in good.items()}, "stores its weights as int8"),
        "NaN": (nan, "holds NaN or infinite numbers"),
    }


def write(folder: Path) -> dict[Path, str]:
    """Fill a folder with them; gives their paths and a regular expression for what is to be said of each."""
    paths = {}
    for name, (weights, said) in _contents().items():
        path = folder / f"{name}.safetensors"
        save_file({key: value.detach().contiguous() for key, value in weights.items()}, path)
        paths[path] = said
    return paths
