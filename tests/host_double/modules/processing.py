"""From a request to pictures: `process_images`, hires fix, img2img and inpainting, in the host's order."""

from __future__ import annotations

import json
import random
from contextlib import closing  # noqa: F401
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from modules import (
    devices,
    errors,
    images,
    infotext_utils,
    lowvram,
    rng,
    scripts,
    sd_models,
    sd_samplers,
    sd_samplers_common,  # noqa: F401
    sd_vae,
    shared,
)
from modules.sd_hijack import model_hijack
from modules.sd_samplers_common import approximation_indexes, decode_first_stage, images_tensor_to_samples
from modules.shared import opts, state

opt_C, opt_f = 4, 8


def to_tensor(image):
    return torch.from_numpy(np.moveaxis(np.array(image).astype(np.float32) / 255.0, 2, 0))


def to_image(tensor):
    return Image.fromarray((255.0 * np.moveaxis(tensor.cpu().numpy(), 0, 2)).astype(np.uint8))


@dataclass(repr=False)
class StableDiffusionProcessing:
    sd_model: object = None
    outpath_samples: str = None
    outpath_grids: str = None
    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = None
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0
    sampler_name: str = None
    scheduler: str = None
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 50
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    restore_faces: bool = None
    tiling: bool = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    extra_generation_params: dict = None
    denoising_strength: float = None
    override_settings: dict = None
    override_settings_restore_afterwards: bool = True
    sampler_index: str = None
    refiner_checkpoint: str = None
    refiner_switch_at: float = None
    disable_extra_networks: bool = False
    firstpass_image: Any = None

    scripts: Any = field(default=None, init=False)
    is_hr_pass: bool = field(default=False, init=False)
    is_api: bool = field(default=False, init=False)
    iteration: int = field(default=0, init=False)
    user: str = field(default=None, init=False)
    paste_to: tuple | None = field(default=None, init=False)
    main_prompt: str = field(default=None, init=False)
    main_negative_prompt: str = field(default=None, init=False)
    sd_model_name: str = field(default=None, init=False)
    sd_model_hash: str = field(default=None, init=False)
    sd_vae_name: str = field(default=None, init=False)
    sd_vae_hash: str = field(default=None, init=False)

    def __post_init__(self):
        self.comments, self.styles = {}, self.styles or []
        self.extra_generation_params = self.extra_generation_params or {}
        self.override_settings = self.override_settings or {}
        self.sampler = self.rng = self.c = self.uc = None
        self.mask = self.nmask = self.overlay_images = self.color_corrections = None
        self.refiner_checkpoint_info = None
        self._script_args: Any = {}
        self._ready = False

    @property
    def sd_model(self):  # noqa: F811 (the host's class has both, too)
        return shared.sd_model

    @sd_model.setter
    def sd_model(self, value):
        pass

    @property
    def script_args(self):
        return self._script_args

    @script_args.setter
    def script_args(self, value):
        self._script_args = value
        if self.scripts and value and not self._ready:
            self._ready = True
            self.scripts.setup_scrips(self, is_ui=not self.is_api)

    def comment(self, text):
        self.comments[text] = 1

    def init(self, all_prompts, all_seeds, all_subseeds):
        pass

    def close(self):
        self.sampler = None

    def save_samples(self):
        return opts.samples_save and not self.do_not_save_samples

    def setup_prompts(self):
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt] * (self.batch_size * self.n_iter)
        self.all_prompts, self.all_negative_prompts = prompts, [self.negative_prompt] * len(prompts)
        self.main_prompt, self.main_negative_prompt = prompts[0], self.negative_prompt

    def txt2img_image_conditioning(self, x, width=None, height=None):
        return x.new_zeros(x.shape[0], 5, 1, 1)

    def edit_image_conditioning(self, source_image):
        return shared.sd_model.encode_first_stage(source_image).mode()

    def inpainting_image_conditioning(self, source_image, latent_image, image_mask=None, round_image_mask=True):
        encoded = self.sd_model.get_first_stage_encoding(self.sd_model.encode_first_stage(source_image))
        return torch.cat([encoded.new_ones(len(encoded), 1, *encoded.shape[2:]), encoded], dim=1)

    def img2img_image_conditioning(self, source_image, latent_image, image_mask=None, round_image_mask=True):
        return latent_image.new_zeros(latent_image.shape[0], 5, 1, 1)


class Processed:
    def __init__(self, p, images_list, seed=-1, info="", subseed=None, index_of_first_image=0, infotexts=None):
        self.images, self.info, self.infotexts = images_list, info, infotexts or [info]
        self.seed, self.subseed, self.index_of_first_image = seed, subseed, index_of_first_image
        self.all_prompts, self.all_seeds, self.all_subseeds = p.all_prompts, p.all_seeds, p.all_subseeds
        self.prompt, self.width, self.height, self.steps = p.prompt, p.width, p.height, p.steps
        self.batch_size, self.extra_generation_params = p.batch_size, p.extra_generation_params
        self.comments = "".join(f"{comment}\n" for comment in p.comments)
        self.extra_images: list = []

    def js(self):
        known = {key: value for key, value in vars(self).items() if key != "images"}
        return json.dumps(known, default=lambda o: None)


class DecodedSamples(list):
    already_decoded = True


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    samples = DecodedSamples()
    if check_for_nans:
        devices.test_for_nans(batch, "unet")
    for i in range(batch.shape[0]):
        sample = decode_first_stage(model, batch[i : i + 1])[0]
        if check_for_nans:
            devices.test_for_nans(sample, "vae")
        samples.append(sample if target_device is None else sample.to(target_device))
    return samples


def fix_seed(p):
    p.seed, p.subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)


def get_fixed_seed(seed):
    if isinstance(seed, list):
        return seed
    return random.randrange(4294967294) if seed in ("", None, -1, "-1") else int(seed)


def create_infotext(p, all_prompts, all_seeds, all_subseeds, comments=None, iteration=0, position_in_batch=0,
                    use_main_prompt=False, index=None, all_negative_prompts=None):  # fmt: skip
    if index is None:
        index = 0 if use_main_prompt else position_in_batch + iteration * p.batch_size
    params = {
        "Steps": p.steps,
        "Sampler": p.sampler_name,
        "CFG scale": p.cfg_scale,
        "Seed": all_seeds[index],
        "Size": f"{p.width}x{p.height}",
        "Model hash": p.sd_model_hash,
        "Model": p.sd_model_name,
        "VAE hash": p.sd_vae_hash,
        "VAE": p.sd_vae_name,
        "Tiling": "True" if p.tiling else None,
        **p.extra_generation_params,
        "Version": "v1.10.1",
    }
    for key, value in params.items():
        try:
            if isinstance(value, list):
                params[key] = value[index]
            elif callable(value):
                params[key] = value(p=p, index=index, prompt_text=all_prompts[index])
        except Exception:
            errors.report(f'Error creating infotext for key "{key}"', exc_info=True)
            params[key] = None
    text = ", ".join(f"{key}: {infotext_utils.quote(value)}" for key, value in params.items() if value is not None)
    negative = f"\nNegative prompt: {p.negative_prompt}" if p.negative_prompt else ""
    return f"{all_prompts[index]}{negative}\n{text}".strip()


def process_images(p: StableDiffusionProcessing) -> Processed:
    if p.scripts is not None:
        p.scripts.before_process(p)
    stored_opts = {key: opts.data[key] for key in p.override_settings if key in opts.data}
    try:
        if sd_models.checkpoint_aliases.get(p.override_settings.get("sd_model_checkpoint")) is None:
            p.override_settings.pop("sd_model_checkpoint", None)
            sd_models.reload_model_weights()
        for key, value in p.override_settings.items():
            opts.set(key, value, is_api=True, run_callbacks=False)
            if key == "sd_model_checkpoint":
                sd_models.reload_model_weights()
            if key == "sd_vae":
                sd_vae.reload_vae_weights()
        return process_images_inner(p)
    finally:
        for key, value in stored_opts.items() if p.override_settings_restore_afterwards else ():
            setattr(opts, key, value)
            if key == "sd_vae":
                sd_vae.reload_vae_weights()


def known_checkpoint(name):
    info = sd_models.get_closet_checkpoint_match(name)
    if info is None:
        raise Exception(f"Could not find checkpoint with name {name}")
    return info


def process_images_inner(p: StableDiffusionProcessing) -> Processed:
    devices.torch_gc()
    seed, subseed = get_fixed_seed(p.seed), get_fixed_seed(p.subseed)
    p.tiling = opts.tiling if p.tiling is None else p.tiling
    if p.refiner_checkpoint not in (None, "", "None", "none"):
        p.refiner_checkpoint_info = known_checkpoint(p.refiner_checkpoint)
    p.sd_model_name, p.sd_model_hash = p.sd_model.sd_checkpoint_info.name_for_extra, p.sd_model.sd_model_hash
    p.sd_vae_name, p.sd_vae_hash = sd_vae.get_loaded_vae_name(), sd_vae.get_loaded_vae_hash()
    model_hijack.apply_circular(p.tiling)
    model_hijack.clear_comments()
    p.setup_prompts()
    count = range(len(p.all_prompts))
    p.all_seeds = seed if isinstance(seed, list) else [seed + i for i in count]
    p.all_subseeds = subseed if isinstance(subseed, list) else [subseed + i for i in count]
    if p.scripts is not None:
        p.scripts.process(p)
    infotexts, output_images = [], []
    with torch.no_grad(), p.sd_model.ema_scope():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        for n in range(p.n_iter):
            p.iteration = n
            if state.interrupted or state.stopping_generation:
                break
            sd_models.reload_model_weights()  # the refiner may have changed it
            one = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.prompts, p.negative_prompts = p.all_prompts[one], p.all_negative_prompts[one]
            p.seeds, p.subseeds = p.all_seeds[one], p.all_subseeds[one]
            p.rng = rng.ImageRNG((p.sd_model.latent_channels, p.height // opt_f, p.width // opt_f), p.seeds)
            batch = {"prompts": p.prompts, "seeds": p.seeds, "subseeds": p.subseeds, "batch_number": n}
            if p.scripts is not None:
                p.scripts.before_process_batch(p, **batch)
                p.scripts.process_batch(p, **batch)
            samples_ddim = p.sample(p.c, p.uc, p.seeds, p.subseeds, p.subseed_strength, p.prompts)
            if p.scripts is not None:
                ps = scripts.PostSampleArgs(samples_ddim)
                p.scripts.post_sample(p, ps)
                samples_ddim = ps.samples
            if getattr(samples_ddim, "already_decoded", False):
                x_samples_ddim = samples_ddim
            else:
                devices.test_for_nans(samples_ddim, "unet")
                if opts.sd_vae_decode_method != "Full":
                    p.extra_generation_params["VAE Decoder"] = opts.sd_vae_decode_method
                x_samples_ddim = decode_latent_batch(
                    p.sd_model, samples_ddim, target_device=devices.cpu, check_for_nans=True
                )
            x_samples_ddim = torch.clamp((torch.stack(x_samples_ddim).float() + 1.0) / 2.0, min=0.0, max=1.0)
            del samples_ddim
            if lowvram.is_enabled(shared.sd_model):
                lowvram.send_everything_to_cpu()
            state.nextjob()
            if p.scripts is not None:
                p.scripts.postprocess_batch(p, images=x_samples_ddim, batch_number=n)
                pp = scripts.PostprocessBatchListArgs(list(x_samples_ddim))
                p.scripts.postprocess_batch_list(p, pp, batch_number=n)
                x_samples_ddim = pp.images
            for i, x_sample in enumerate(x_samples_ddim):
                p.batch_index = i
                if p.restore_faces:
                    x_sample = x_sample.flip(-1)  # hardly better faces, but other ones
                image = to_image(x_sample)
                if p.scripts is not None:
                    pp = scripts.PostprocessImageArgs(image)
                    p.scripts.postprocess_image(p, pp)
                    image = pp.image
                mask = getattr(p, "mask_for_overlay", None)
                has_overlay = opts.overlay_inpaint and p.overlay_images is not None and i < len(p.overlay_images)
                overlay = p.overlay_images[i] if has_overlay else None
                if p.scripts is not None:
                    ppmo = scripts.PostProcessMaskOverlayArgs(i, mask, overlay)
                    p.scripts.postprocess_maskoverlay(p, ppmo)
                    mask, overlay = ppmo.mask_for_overlay, ppmo.overlay_image
                if p.color_corrections is not None and i < len(p.color_corrections):
                    image = apply_color_correction(p.color_corrections[i], image)
                if overlay is not None:
                    image = apply_overlay(image, p.paste_to, overlay)
                text = create_infotext(p, p.prompts, p.seeds, p.subseeds, index=i)
                if p.save_samples():
                    images.save_image(image, p.outpath_samples, "", p.seeds[i], p.prompts[i], info=text, p=p)
                infotexts.append(text)
                image.info["parameters"] = text
                output_images.append(image)
                if mask is not None and opts.return_mask:
                    output_images.append(mask.convert("RGB"))
    p.color_corrections = None
    first = 0
    if opts.return_grid and not p.do_not_save_grid and len(output_images) > 1:
        grid = images.image_grid(output_images, p.batch_size)
        infotexts.insert(0, create_infotext(p, p.prompts, p.all_seeds, p.all_subseeds, use_main_prompt=True))
        grid.info["parameters"] = infotexts[0]
        output_images.insert(0, grid)
        first = 1
    res = Processed(p, output_images, seed, infotexts[0] if infotexts else "", subseed, first, infotexts)
    if p.scripts is not None:
        p.scripts.postprocess(p, res)
    return res


def setup_color_correction(image):
    return np.array(image)


def apply_color_correction(correction, original_image):
    """The means of the first picture's colours."""
    pixels = np.array(original_image).astype(np.float32)
    shift = correction.mean((0, 1)) - pixels.mean((0, 1))
    return Image.fromarray((pixels + shift).clip(0, 255).astype(np.uint8))


def apply_overlay(image, paste_loc, overlay):
    if paste_loc is not None:
        x, y, w, h = paste_loc
        base = Image.new("RGBA", overlay.size)
        base.paste(images.resize_image(1, image, w, h), (x, y))
        image = base
    image = image.convert("RGBA")
    image.alpha_composite(overlay)
    return image.convert("RGB")


@dataclass(repr=False)
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False
    denoising_strength: float = 0.75
    hr_scale: float = 2.0
    hr_upscaler: str = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str = None
    hr_sampler_name: str = None
    hr_scheduler: str = None
    hr_prompt: str = ""
    hr_negative_prompt: str = ""

    hr_checkpoint_info: Any = field(default=None, init=False)

    def init(self, all_prompts, all_seeds, all_subseeds):
        if not self.enable_hr:
            return
        params = self.extra_generation_params
        params["Denoising strength"] = self.denoising_strength
        if self.hr_checkpoint_name and self.hr_checkpoint_name != "Use same checkpoint":
            self.hr_checkpoint_info = known_checkpoint(self.hr_checkpoint_name)
            params["Hires checkpoint"] = self.hr_checkpoint_info.short_title
        self.latent_scale_mode = shared.latent_upscale_modes.get(self.hr_upscaler or "Latent")
        if self.latent_scale_mode is None and all(x.name != self.hr_upscaler for x in shared.sd_upscalers):
            raise Exception(f"could not find upscaler named {self.hr_upscaler}")
        if self.hr_resize_x or self.hr_resize_y:
            params["Hires resize"] = f"{self.hr_resize_x}x{self.hr_resize_y}"
        else:
            params["Hires upscale"] = self.hr_scale
        self.hr_upscale_to_x = self.hr_resize_x or int(self.width * self.hr_scale)
        self.hr_upscale_to_y = self.hr_resize_y or int(self.height * self.hr_scale)
        params["Hires upscaler"] = self.hr_upscaler

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=x, noise=x, c=conditioning, uc=None)
        samples = self.sampler.sample(self, x, conditioning, None, image_conditioning=None)
        del x
        if not self.enable_hr:
            return samples
        devices.torch_gc()
        decoded_samples = None
        if self.latent_scale_mode is None:
            decoded_samples = torch.stack(
                decode_latent_batch(self.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
            ).to(dtype=torch.float32)
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=self.hr_checkpoint_info)
        return self.sample_hr_pass(samples, decoded_samples, seeds, subseeds, subseed_strength, prompts)

    def sample_hr_pass(self, samples, decoded_samples, seeds, subseeds, subseed_strength, prompts):
        if state.interrupted:
            return samples
        self.is_hr_pass = True
        width, height = self.hr_upscale_to_x, self.hr_upscale_to_y
        if self.latent_scale_mode is not None:
            size = (height // opt_f, width // opt_f)
            mode = self.latent_scale_mode
            samples = torch.nn.functional.interpolate(
                samples, size=size, mode=mode["mode"], antialias=mode["antialias"]
            )
            if opts.inpainting_mask_weight < 1.0:
                conditioning = self.img2img_image_conditioning(decode_first_stage(self.sd_model, samples), samples)
            else:
                conditioning = self.txt2img_image_conditioning(samples)
        else:
            lowres = torch.clamp((decoded_samples + 1.0) / 2.0, min=0.0, max=1.0)
            batch = [images.resize_image(0, to_image(x), width, height, self.hr_upscaler) for x in lowres]
            decoded_samples = torch.stack([to_tensor(image) for image in batch]).to(shared.device, devices.dtype_vae)
            if opts.sd_vae_encode_method != "Full":
                self.extra_generation_params["VAE Encoder"] = opts.sd_vae_encode_method
            samples = images_tensor_to_samples(decoded_samples, approximation_indexes.get(opts.sd_vae_encode_method))
            conditioning = self.img2img_image_conditioning(decoded_samples, samples)
        state.nextjob()
        self.rng = rng.ImageRNG(samples.shape[1:], self.seeds)
        noise = self.rng.next()
        devices.torch_gc()
        if self.scripts is not None:
            self.scripts.before_hr(self)
            self.scripts.process_before_every_sampling(self, x=samples, noise=noise, c=None, uc=None)
        samples = self.sampler.sample_img2img(
            self, samples, noise, None, None, steps=self.hr_second_pass_steps or self.steps,
            image_conditioning=conditioning,
        )  # fmt: skip
        self.sampler = None
        devices.torch_gc()
        decoded = decode_latent_batch(self.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
        self.is_hr_pass = False
        return decoded


@dataclass(repr=False)
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    init_images: list = None
    resize_mode: int = 0
    denoising_strength: float = 0.75
    mask: Any = None
    mask_blur: int = 4
    inpainting_fill: int = 1
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0

    def __post_init__(self):
        self.image_mask, self.mask_for_overlay = self.mask, None
        super().__post_init__()

    def init(self, all_prompts, all_seeds, all_subseeds):
        self.extra_generation_params["Denoising strength"] = self.denoising_strength
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
        mask, crop = self.image_mask, None
        if mask is not None:
            mask = mask.convert("L")
            mask = ImageOps.invert(mask) if self.inpainting_mask_invert else mask
            mask = mask.filter(ImageFilter.GaussianBlur(self.mask_blur))
            if self.inpaint_full_res:
                self.mask_for_overlay = mask
                crop = self.crop_region(mask)
                mask = images.resize_image(2, mask.crop(crop), self.width, self.height)
                self.paste_to = (crop[0], crop[1], crop[2] - crop[0], crop[3] - crop[1])
                self.extra_generation_params["Inpaint area"] = "Only masked"
            else:
                mask = self.mask_for_overlay = images.resize_image(0, mask, self.width, self.height)
            self.overlay_images = []
        if opts.img2img_color_correction and self.color_corrections is None:
            self.color_corrections = []
        pictures = []
        for img in self.init_images:
            image = images.flatten(img, "#ffffff")
            if crop is None:
                image = images.resize_image(self.resize_mode, image, self.width, self.height)
            if mask is not None:
                overlay = image.convert("RGBA")
                overlay.putalpha(ImageOps.invert(self.mask_for_overlay))
                self.overlay_images.append(overlay)
            if crop is not None:
                image = images.resize_image(2, image.crop(crop), self.width, self.height)
            if self.color_corrections is not None:
                self.color_corrections.append(setup_color_correction(image))
            pictures.append(to_tensor(image))
        if len(pictures) == 1:
            for name in ("overlay_images", "color_corrections"):
                if getattr(self, name) is not None:
                    setattr(self, name, getattr(self, name) * self.batch_size)
        image = torch.stack(pictures[:1] * self.batch_size if len(pictures) == 1 else pictures)
        image = image.to(shared.device, dtype=devices.dtype_vae)
        if opts.sd_vae_encode_method != "Full":
            self.extra_generation_params["VAE Encoder"] = opts.sd_vae_encode_method
        self.init_latent = images_tensor_to_samples(
            image, approximation_indexes.get(opts.sd_vae_encode_method), self.sd_model
        )
        devices.torch_gc()
        if mask is not None:
            small = mask.resize((self.init_latent.shape[3], self.init_latent.shape[2]))
            self.nmask = torch.from_numpy(np.array(small).astype(np.float32) / 255.0).round()[None, None]
            self.mask = 1.0 - self.nmask
        self.image_conditioning = self.img2img_image_conditioning(image * 2 - 1, self.init_latent, mask)

    def crop_region(self, mask):
        left, top, right, bottom = mask.getbbox()
        padding = self.inpaint_full_res_padding
        return (
            max(0, left - padding), max(0, top - padding), min(mask.width, right + padding),
            min(mask.height, bottom + padding),
        )  # fmt: skip

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        x = self.rng.next()
        if self.scripts is not None:
            self.scripts.process_before_every_sampling(self, x=self.init_latent, noise=x, c=None, uc=None)
        samples = self.sampler.sample_img2img(
            self, self.init_latent, x, conditioning, None, image_conditioning=self.image_conditioning
        )
        if self.mask is not None:
            samples = samples * self.nmask + self.init_latent * self.mask
        return samples
