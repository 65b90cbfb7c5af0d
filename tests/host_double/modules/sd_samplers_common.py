"""Latents to pictures and back. `processing` imports these names, so a patch here does not reach it there."""

from collections import namedtuple

import numpy as np
import torch
from PIL import Image

from modules import devices, images, lowvram, sd_models, sd_vae_taesd, shared
from modules.shared import opts, state

SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])
approximation_indexes = {"Full": 0, "Approx NN": 1, "Approx cheap": 2, "TAESD": 3}


class InterruptedException(BaseException):
    pass


def samples_to_images_tensor(sample, approximation=None, model=None):
    """Latents to (B, 3, H, W) in [-1, 1]."""
    if approximation is None or (state.interrupted and opts.live_preview_fast_interrupt):
        approximation = approximation_indexes.get(opts.show_progress_type, 0)
        if approximation == 0 and lowvram.is_enabled(shared.sd_model):
            approximation = 1
    if approximation in (1, 2):
        return sample[:, :3].repeat_interleave(8, -1).repeat_interleave(8, -2).clamp(-1, 1)
    if approximation == 3:
        return sd_vae_taesd.decoder_model()(sample.to(devices.device, devices.dtype)).detach() * 2 - 1
    model = shared.sd_model if model is None else model
    with torch.no_grad(), devices.without_autocast():
        return model.decode_first_stage(sample.to(getattr(model.first_stage_model, "dtype", devices.dtype_vae)))


def single_sample_to_image(sample, approximation=None):
    picture = samples_to_images_tensor(sample.unsqueeze(0), approximation)[0] * 0.5 + 0.5
    return Image.fromarray((255.0 * np.moveaxis(picture.clamp(0, 1).cpu().numpy(), 0, 2)).astype(np.uint8))


def sample_to_image(samples, index=0, approximation=None):
    return single_sample_to_image(samples[index], approximation)


def samples_to_image_grid(samples, approximation=None):
    return images.image_grid([single_sample_to_image(sample, approximation) for sample in samples])


def decode_first_stage(model, x):
    x = x.to(devices.dtype_vae)
    return samples_to_images_tensor(x, approximation_indexes.get(opts.sd_vae_decode_method, 0), model)


def images_tensor_to_samples(image, approximation=None, model=None):
    """(B, 3, H, W) in [0, 1] to latents."""
    if approximation is None:
        approximation = approximation_indexes.get(opts.sd_vae_encode_method, 0)
    if approximation == 3:
        return sd_vae_taesd.encoder_model()(image.to(devices.device, devices.dtype))
    model = shared.sd_model if model is None else model
    model.first_stage_model.to(devices.dtype_vae)
    image = image.to(shared.device, dtype=devices.dtype_vae) * 2 - 1
    parts = [model.get_first_stage_encoding(model.encode_first_stage(one[None]))[0] for one in image]
    return torch.stack(parts)


def apply_refiner(p, completed_ratio):
    """From `refiner_switch_at` on the other checkpoint samples, and stays loaded until the next batch."""
    info = p.refiner_checkpoint_info
    if p.refiner_switch_at is not None and completed_ratio < p.refiner_switch_at:
        return
    if info is None or shared.sd_model.sd_checkpoint_info == info:
        return
    if getattr(p, "enable_hr", False) and not p.is_hr_pass:  # as the host's settings have it: the second pass
        return
    p.extra_generation_params |= {"Refiner": info.short_title, "Refiner switch at": p.refiner_switch_at}
    with sd_models.SkipWritingToConfig():
        sd_models.reload_model_weights(info=info)
    devices.torch_gc()


def store_latent(decoded):
    state.current_latent = decoded
