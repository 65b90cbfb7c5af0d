"""From finished latents to pictures: what is raised in there becomes an empty list."""

import torch
from modules import shared


def full_vae_decode(latents, model):
    config = model.vae.config
    latents = latents / config.scaling_factor + (config.shift_factor or 0)
    try:
        with torch.no_grad():
            return model.vae.decode(latents, return_dict=False)[0]
    except Exception as error:
        print(f"VAE decode: {error}")
        return []


def full_vae_encode(image, model):
    return model.vae.encode(image).latent_dist.sample() * model.vae.config.scaling_factor


def vae_decode(latents, model, vae_type="Full"):
    if shared.state.interrupted:
        return []
    decoded = full_vae_decode(latents, model)
    if not torch.is_tensor(decoded):
        return decoded
    pixels = (decoded / 2 + 0.5).clamp(0, 1).nan_to_num(0).mul(255).round()
    return list(pixels.permute(0, 2, 3, 1).byte().numpy())
