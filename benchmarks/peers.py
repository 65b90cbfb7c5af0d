"""The peers' decoders, with our weights in them.

What is not on PyPI is taken from a checkout that an environment variable names: WEBUI_DIR (the ldm that AUTOMATIC1111
runs), COMFYUI_DIR (its tiled decode), TILED_VAE_DIR (the extension multidiffusion-upscaler-for-automatic1111).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.checkpoints.layouts import map_keys
from vae_lib.networks import Architecture, AutoencoderKL, AutoencoderKLConfig, Network, WanConfig, WanVAE

Decode = Callable[[Tensor], Tensor]
TILES = ((64, 64), (32, 128), (128, 32))


class Missing(Exception):
    """A peer that is not on this machine; the message says what it takes."""


def diffusers(vae: Network, device: torch.device, dtype: torch.dtype, mode: str) -> Decode:
    """diffusers' network: "full", "tiled" or "sliced", each with its default settings."""
    other = diffusers_network(vae.config)
    copy_weights(vae, other)
    if isinstance(vae, AutoencoderKL):  # Wan's counts the layers of its encoder in each decode
        other.encoder = other.quant_conv = None
    other.eval().requires_grad_(False).to(device, dtype)
    if mode == "tiled":
        other.enable_tiling()
    elif mode == "sliced":
        other.enable_slicing()
    if isinstance(vae, WanVAE):  # a video of one frame
        return lambda z: other.decode(z.unsqueeze(2)).sample.squeeze(2)
    return lambda z: other.decode(z).sample


def diffusers_network(config: Architecture) -> Any:
    """diffusers' AutoencoderKL, AutoencoderKLQwenImage or AutoencoderKLWan, of our shape, with weights of its own."""
    try:
        import diffusers as library
    except ImportError:
        raise Missing("diffusers is not installed") from None
    if isinstance(config, WanConfig):
        shape = {
            "base_dim": config.widths[0],
            "z_dim": config.z_channels,
            "dim_mult": [width // config.widths[0] for width in config.widths],
            "num_res_blocks": config.num_res_blocks,
        }
        if config.frames is None:
            return library.AutoencoderKLQwenImage(**shape)
        return library.AutoencoderKLWan(
            **shape,
            decoder_base_dim=config.decoder_ch,
            temperal_downsample=[frames == 2 for frames in config.frames],
            is_residual=True,
            in_channels=config.in_channels * config.patch**2,
            out_channels=config.out_channels * config.patch**2,
            patch_size=config.patch,
        )
    assert isinstance(config, AutoencoderKLConfig)
    levels = len(config.ch_mult)
    return library.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_post_quant_conv,
        sample_size=512,
    )


def copy_weights(vae: Network, other: Any) -> None:
    """Our weights into diffusers' network: under our names its tensors are views of the same memory."""
    theirs = other.state_dict()
    keys = map_keys(theirs)
    assert keys is not None
    for name, weight in vae.state_dict().items():
        keys.view(name, theirs[keys.sources[name]]).copy_(weight)


def ldm(vae: Network, device: torch.device, dtype: torch.dtype) -> Decode:
    """The decoder that AUTOMATIC1111 runs, picture by picture, with the attention that it sets in by default on a GPU.

    It is ldm's from WEBUI_DIR or from the package stable-diffusion-sdkit.
    """
    decoder, post_quant = _ldm_decoder(vae, device, dtype)
    return lambda z: torch.cat([decoder(post_quant(picture)) for picture in z.split(1)])


def _ldm_decoder(vae: Network, device: torch.device, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    if not isinstance(vae, AutoencoderKL):
        raise Missing("ldm has no such network")
    webui = os.environ.get("WEBUI_DIR")
    if webui:
        sys.path.insert(0, str(Path(webui) / "repositories" / "stable-diffusion-stability-ai"))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            model = importlib.import_module("ldm.modules.diffusionmodules.model")
    except ImportError as error:
        raise Missing(f"ldm is not there ({error}): see benchmarks/requirements.txt, or set WEBUI_DIR") from None
    model.AttnBlock.forward = _attention
    config = vae.config
    with contextlib.redirect_stdout(sys.stderr):
        decoder = model.Decoder(
            ch=config.ch, out_ch=3, ch_mult=config.ch_mult, num_res_blocks=config.num_res_blocks,
            attn_resolutions=[], in_channels=3, resolution=256, z_channels=config.z_channels,
        )  # fmt: skip
    assert vae.decoder is not None
    decoder.load_state_dict(vae.decoder.state_dict())
    decoder.eval().requires_grad_(False).to(device, dtype)
    return decoder, (vae.post_quant_conv or nn.Identity()).to(device, dtype)


def _attention(self: Any, x: Tensor) -> Tensor:
    """Scaled dot product attention in place of ldm's own, which would make the whole matrix of scores."""
    height, width = x.shape[2:]
    h = self.norm(x)
    q, k, v = (layer(h).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v))
    h = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).unflatten(2, (height, width))
    return x + self.proj_out(h)


def three_passes(vae: Network, device: torch.device, dtype: torch.dtype) -> Decode:
    """A stand-in for the tiled decode of ComfyUI and Forge, on ldm's decoder: three passes over tiles of 64x64, 32x128
    and 128x32 latents that overlap by 16, feathered, averaged.
    """
    decoder, post_quant = _ldm_decoder(vae, device, dtype)

    def decode(latents: Tensor) -> Tensor:
        passes = [_tiled(lambda z: decoder(post_quant(z)), latents, tile) for tile in TILES]
        return sum(passes[1:], passes[0]).div_(len(passes))

    return decode


def _tiled(decode: Decode, latents: Tensor, tile: tuple[int, int], overlap: int = 16) -> Tensor:
    """Overlapping tiles, each normalised and attended by itself, blended with feathered edges."""
    batch, _, height, width = latents.shape
    out = latents.new_zeros(batch, 3, height * 8, width * 8)
    weights = torch.zeros_like(out[:1, :1])
    starts = [
        range(0, side - overlap, length - overlap) if side > length else (0,)
        for side, length in zip((height, width), tile, strict=True)
    ]
    for top, left in product(*starts):
        part = decode(latents[:, :, top : top + tile[0], left : left + tile[1]])
        ramps = [
            torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).clamp(max=overlap * 8) / (overlap * 8)
            for n in part.shape[2:]
        ]
        mask = (ramps[0][:, None] * ramps[1]).to(part)
        area = (..., slice(top * 8, top * 8 + part.shape[2]), slice(left * 8, left * 8 + part.shape[3]))
        out[area] += part * mask
        weights[area] += mask
    return out.div_(weights)


def comfyui(vae: Network, device: torch.device, dtype: torch.dtype) -> Decode:
    """ComfyUI's own tiling (``comfy.utils.tiled_scale`` from COMFYUI_DIR), with its defaults, on ldm's decoder."""
    checkout = os.environ.get("COMFYUI_DIR")
    if not checkout:
        raise Missing("set COMFYUI_DIR to a checkout of ComfyUI")
    sys.path.insert(0, checkout)
    try:
        utils = importlib.import_module("comfy.utils")
    except ImportError as error:
        raise Missing(f"ComfyUI in {checkout} cannot be imported: {error}") from None
    decoder, post_quant = _ldm_decoder(vae, device, dtype)

    def decode(latents: Tensor) -> Tensor:
        passes = [
            utils.tiled_scale(
                latents, lambda z: decoder(post_quant(z)), tile_x=width, tile_y=height, overlap=16,
                upscale_amount=8, output_device=device,
            )
            for height, width in TILES
        ]  # fmt: skip
        return sum(passes[1:], passes[0]).div_(len(passes))

    return decode


def tiled_vae(vae: Network, device: torch.device, dtype: torch.dtype, fast: bool) -> Decode:
    """The extension Tiled VAE from TILED_VAE_DIR, with the tile size that it recommends for this device.

    ``fast`` is its default: group norms estimated on a shrunken picture.
    """
    checkout = os.environ.get("TILED_VAE_DIR")
    if not checkout:
        raise Missing("set TILED_VAE_DIR to a checkout of multidiffusion-upscaler-for-automatic1111")
    decoder, post_quant = _ldm_decoder(vae, device, dtype)
    _pretend_to_be_the_webui(device)
    sys.path.insert(0, checkout)
    spec = importlib.util.spec_from_file_location("tilevae", Path(checkout) / "scripts" / "tilevae.py")
    if spec is None or spec.loader is None:
        raise Missing(f"there is no scripts/tilevae.py in {checkout}")
    script = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(script)
    except (ImportError, FileNotFoundError) as error:
        raise Missing(f"Tiled VAE in {checkout} cannot be imported: {error}") from None
    decoder.original_forward = decoder.forward
    hook = script.VAEHook(
        decoder,
        script.get_rcmd_dec_tsize(),
        is_decoder=True,
        fast_decoder=fast,
        fast_encoder=fast,
        color_fix=False,
    )

    def decode(latents: Tensor) -> Tensor:
        with contextlib.redirect_stdout(sys.stderr):
            return torch.cat([hook(post_quant(picture)) for picture in latents.split(1)])

    return decode


def _pretend_to_be_the_webui(device: torch.device) -> None:
    """The few names of the WebUI's modules that Tiled VAE looks at."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    model = sys.modules["ldm.modules.diffusionmodules.model"]
    if not hasattr(model, "MemoryEfficientAttnBlock"):
        model.MemoryEfficientAttnBlock = type("MemoryEfficientAttnBlock", (nn.Module,), {})  # type: ignore[attr-defined]
    shared = SimpleNamespace(
        state=SimpleNamespace(interrupted=False), opts=SimpleNamespace(upcast_attn=False), cmd_opts=None
    )
    devices = {
        "device": device, "cpu": torch.device("cpu"), "torch_gc": nothing, "test_for_nans": nothing,
        "autocast": contextlib.nullcontext, "get_optimal_device": lambda: device,
        "get_optimal_device_name": lambda: device.type, "without_autocast": contextlib.nullcontext,
    }  # fmt: skip
    names: dict[str, dict[str, Any]] = {
        "modules": {},
        "modules.scripts": {"Script": object, "AlwaysVisible": object()},
        "modules.devices": devices,
        "modules.shared": vars(shared),
        "modules.ui": {"gr_show": nothing},
        "modules.processing": {"opt_f": 8},
        "modules.sd_vae_approx": {"cheap_approximation": nothing},
        "modules.sd_hijack": {"model_hijack": SimpleNamespace(optimization_method="sdp")},
        "modules.sd_hijack_optimizations": dict.fromkeys(
            ("get_available_vram", "get_xformers_flash_attention_op", "sub_quad_attention"), nothing
        ),
        "tile_utils.typing": {"Processing": object},
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent == "modules":
            setattr(sys.modules[parent], child, module)
    if importlib.util.find_spec("gradio") is None:
        sys.modules["gradio"] = ModuleType("gradio")
