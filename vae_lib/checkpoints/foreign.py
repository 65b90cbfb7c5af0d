"""What a file is when it is not a VAE, by its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vae_lib.checkpoints.header import quote_some

# in order: a ControlNet also has UNet blocks, a LoRA names text encoders and UNets
_SIGNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        ("a ControlNet", r"^(control_model|lora_controlnet)|controlnet_|input_hint_block|zero_convs?\."),
        ("a T2I adapter", r"^(adapter|body)\.(body|conv_in|\d+\.(block1|resnets))"),
        ("an IP-Adapter", r"^(ip_adapter|image_proj)"),
        (
            "a LoRA",
            r"lora_(up|down|A|B|unet|te\d?)\b|lora_|\.lora\.|hada_w|lokr_w|oft_(blocks|diag)|\.dora_scale$",
        ),
        ("a file of latents", r"^(latents|latent_tensor)$"),
        ("a textual inversion embedding", r"^(emb_params|string_to_param|clip_[lg]|<[^>]+>|\*)$"),
        ("a diffusion model without its VAE", r"^model\.diffusion_model\."),
        ("a diffusion model without its VAE", r"^(input_blocks\.\d|joint_blocks\.\d|double_blocks\.\d)"),
        (
            "a diffusion model without its VAE",
            r"^(down_blocks|up_blocks|transformer_blocks|single_transformer_)",
        ),
        (
            "a video VAE",
            r"^(vae\.)?(encoder|decoder)\.(middle|upsamples|downsamples|head)\.|per_channel_statistics",
        ),
        ("a text encoder", r"(^|\.)(text_model|transformer\.resblocks|text_projection|token_embedding)\b"),
        ("a text encoder", r"encoder\.block\.\d+\.layer\.\d+\.|^shared\.weight$"),
        ("an image encoder", r"(^|\.)(vision_model|visual)\."),
        ("an upscaler", r"^(conv_first|RRDB_trunk|model\.\d+\.(sub|weight)|body\.\d+\.(rdb|weight)|params)"),
    )
)

_HALF = r"^([a-z_]+\.)*(encoder|decoder)\."
# VAEs whose keys look like those of ours, and whose networks are others
_OTHER_VAES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (what, re.compile(pattern))
    for what, pattern in (
        (
            "a deep-compression autoencoder (DC-AE)",
            _HALF + r"((down|up)_blocks\.\d+\.\d+\.|stages\.\d+\.op_list\.|project_(in|out)\.)",
        ),
        ("a consistency decoder", r"^decoder_unet\."),
        ("a VAE for inpainting that takes the masked picture as well", _HALF + r"condition_encoder\."),
        # as a lookahead the half is found once, not for each place that the rest might begin at
        ("a video VAE", rf"(?={_HALF}).*\.(spatial_res_block|temporal_res_block|time_mixer|time_stack)\b"),
        ("a video VAE", _HALF + r"time_conv_out\."),
    )
)


def describe_other_vae(keys: Iterable[str]) -> str | None:
    """A noun phrase for a VAE of a kind that there is no network for here; None for any other file."""
    keys = [key for key in keys if isinstance(key, str)]
    return next((what for what, pattern in _OTHER_VAES if any(pattern.match(key) for key in keys)), None)


def describe_foreign(keys: Iterable[str]) -> str:
    """A noun phrase ("a LoRA") for weights in which no VAE was found."""
    keys = [str(key) for key in keys]
    if not keys:
        return "an empty set of weights"
    for what, pattern in _SIGNS:
        if any(pattern.search(key) for key in keys):
            return what
    return f"something unknown (tensors {quote_some(keys)})"
