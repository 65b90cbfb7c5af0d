"""A pipeline's run, which encodes by itself, and the decode of what it gives."""

import torch
from modules import processing_vae, sd_models


def process_diffusers(p):
    model = sd_models.model_data.sd_model
    shape = len(p.prompts), 4, p.height // 8, p.width // 8
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(p.seeds[0]))
    if p.init_images:
        torch.manual_seed(p.seeds[0])
        with torch.no_grad():
            latents = latents + model.vae.encode(p.init_images[0]).latent_dist.sample()
    if p.hr_force:
        p.is_hr_pass = True
        processing_vae.vae_decode(latents, model, p.vae_type)
        p.is_hr_pass = False
    return process_decode(p, type("Output", (), {"images": latents}))


def process_decode(p, output):
    return list(processing_vae.vae_decode(output.images, sd_models.model_data.sd_model, p.vae_type))
