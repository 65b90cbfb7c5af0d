"""One sampler that needs no UNet: it blends the noise with what it is given, deterministically."""

import torch

from modules import script_callbacks, sd_samplers_common, shared
from modules.sd_samplers_common import SamplerData

sample_to_image = sd_samplers_common.sample_to_image
samples_to_image_grid = sd_samplers_common.samples_to_image_grid


class SeededSampler:
    conditioning_key = "crossattn"

    def __init__(self, model):
        self.config = None
        self.last_latent = None

    def _steps(self, p, x, steps=None):
        steps = steps or p.steps
        shared.state.sampling_steps = steps
        for step in range(steps):
            shared.state.sampling_step = step
            sd_samplers_common.apply_refiner(p, step / steps)
            script_callbacks.cfg_after_cfg_callback(script_callbacks.AfterCFGCallbackParams(x, step, steps))
            sd_samplers_common.store_latent(x)
            self.last_latent = x
        return x

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        smooth = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self._steps(p, 0.5 * x + smooth, steps)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        strength = min(p.denoising_strength, 0.999)
        latent = (1 - strength) * x + strength * noise
        if getattr(p, "mask", None) is not None:
            latent = latent * p.nmask + x * p.mask
        return self._steps(p, latent, steps)


all_samplers = [SamplerData(name, SeededSampler, [], {}) for name in ("Euler", "Euler a", "DPM++ 2M")]
samplers = samplers_for_img2img = all_samplers
all_samplers_map = {sampler.name: sampler for sampler in all_samplers}


def find_sampler_config(name):
    return all_samplers_map.get(name, all_samplers[0])


def create_sampler(name, model):
    sampler = SeededSampler(model)
    sampler.config = find_sampler_config(name)
    return sampler


def visible_sampler_names():
    return [sampler.name for sampler in all_samplers]
