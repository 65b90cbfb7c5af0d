"""Gives the model that Forge Neo has loaded the VAE of Qwen-Image, with small random weights; does nothing elsewhere.

Its transformer is too large for tests: the sampler gives the noise itself, or the encoded picture with some of it. All
that comes before and after is Neo's own, by the engine of Qwen-Image, or of Wan, which makes videos.
"""

import importlib.util
from types import MethodType, SimpleNamespace

import torch
from modules import images, script_callbacks, shared

_before = {}


def network(kind):
    from backend.nn import wan_vae, wan_vae_2d
    from backend.operations import using_forge_operations
    from huggingface_guess import latent

    torch.manual_seed(3)
    sizes = {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "attn_scales": []}
    with torch.inference_mode(), using_forge_operations(device="cpu", dtype=torch.float32, bnb_dtype="vae"):
        if kind == "Qwen2DVAE":
            made = wan_vae_2d.Qwen2DVAE(**sizes)
        else:
            made = wan_vae.WanVAE(**sizes, temporal_downsample=[False, True, True])
        for name, weight in made.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.7, 1.3)
            else:
                weight.normal_(std=0.02 if weight.ndim == 1 else (1 / weight[0].numel()) ** 0.5)
    made.latent_format = latent.Wan21()
    return made


def owners(model):
    return model.forge_objects, model.forge_objects_original, model.forge_objects_after_applying_lora


def use(kind: str, video: bool = False):
    """ "WanVAE" or "Qwen2DVAE"; "" puts back what was there. Of a ``video`` the batch size is its number of frames."""
    from backend.args import dynamic_args
    from backend.diffusion_engine.qwen import QwenImage
    from backend.diffusion_engine.wan import Wan
    from backend.patcher.vae import VAE
    from modules import sd_samplers_kdiffusion

    model, sampler = shared.sd_model, sd_samplers_kdiffusion.KDiffusionSampler
    names = ("decode_first_stage", "encode_first_stage")
    if _before:
        for objects in owners(model):
            objects.vae = _before["vae"]
        for name in names:
            vars(model).pop(name, None)
        sampler.sample, sampler.sample_img2img = _before["sampler"]
        images.save_video = _before["save_video"]
        model.is_wan = False
        model.model_config = _before["config"]
        _before.clear()
    dynamic_args.wan = video
    if not kind:
        return
    _before.update(vae=model.forge_objects.vae, sampler=(sampler.sample, sampler.sample_img2img))
    _before.update(config=model.model_config, save_video=images.save_video)
    images.save_video = lambda *given, **named: None  # by ffmpeg, which need not be here; the frames are pictures, too
    vae = VAE(model=network(kind), is_wan=True)
    for objects in owners(model):
        objects.vae = vae
    for name in names:
        setattr(model, name, MethodType(getattr(Wan if video else QwenImage, name), model))
    sampler.sample = lambda self, p, x, *given, **named: x
    sampler.sample_img2img = lambda self, p, x, noise, *given, **named: x + 0.3 * noise
    model.is_wan = True
    model.model_config = SimpleNamespace(latent_format=vae.first_stage_model.latent_format)


def encode_video() -> list[float]:
    """The latents of nine frames, as Neo has them of a video that begins with a picture."""
    frames = torch.rand(9, 64, 48, 3, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        latents = shared.sd_model.forge_objects.vae.encode(frames)
    assert latents.shape == (1, 16, 3, 8, 6)
    return latents.flatten().tolist()


def add_routes(demo, app):
    app.add_api_route("/probe/wan", use, methods=["POST"])
    app.add_api_route("/probe/encode-video", encode_video, methods=["POST"])


if importlib.util.find_spec("backend") and importlib.util.find_spec("backend.nn.wan_vae_2d"):
    script_callbacks.on_app_started(add_routes)
