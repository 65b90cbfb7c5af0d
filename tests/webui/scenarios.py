"""Generations of every kind in which the host decodes or encodes a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.webui.host import IS_NEO, IS_REAL, encode


def photo() -> Image.Image:
    """Something with edges and gradients in it."""
    x, y = np.meshgrid(np.linspace(0, 255, 128), np.linspace(0, 255, 120))
    image = Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((30, 20, 90, 80), fill=(250, 220, 40))
    return image


def mask() -> Image.Image:
    image = Image.new("L", (128, 120), 0)
    ImageDraw.Draw(image).rectangle((40, 30, 100, 90), fill=255)
    return image


IMG2IMG: dict[str, Any] = {
    "tab": "img2img", "init_images": [encode(photo())], "width": 128, "height": 120, "denoising_strength": 0.5,
}  # fmt: skip
UPSCALER = "None" if IS_NEO else "Lanczos"  # of pictures; Neo has no others without a model
HIRES: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5}
REFINER: dict[str, Any] = {"refiner_checkpoint": "small_refiner", "refiner_switch_at": 0.5}
SCENARIOS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "not a square, not in 64s": {"width": 136, "height": 72},
    "batch": {"batch_size": 2, "n_iter": 2},
    "tiling": {"tiling": True},
    **({} if IS_NEO else {"hires fix, latent": {**HIRES, "hr_upscaler": "Latent"}}),  # Neo has no such upscalers
    "hires fix, picture": {**HIRES, "hr_upscaler": UPSCALER},
    "refiner": REFINER,
    "per-checkpoint VAE": {
        # in Neo, "sd_vae" is a file to load
        "override_settings": {
            "sd_model_checkpoint": "small_with_noted_vae", **({} if IS_NEO else {"sd_vae": "Automatic"}),
        },
    },
    "hires fix, another checkpoint": {
        **HIRES, "hr_upscaler": UPSCALER, "hr_checkpoint_name": "small_refiner",
    },
    "img2img": IMG2IMG,
    "inpaint": {**IMG2IMG, "mask": encode(mask()), "inpainting_fill": 1, "inpaint_full_res": False},
}  # fmt: skip
CHANGED: dict[str, dict[str, Any]] = {
    f"layers: {change}": {"alwayson_scripts": {"Probe's layers": {"args": [change]}}}
    for change in ("one axis", "reflect", "hook", "subclass")
}
SCENARIOS |= CHANGED
SD3: dict[str, Any] = {"override_settings": {"sd_model_checkpoint": "small_sd3"}}
if not IS_REAL:  # whose text encoders for SD3 are too large for tests
    SCENARIOS |= {"SD3": SD3, "SD3, hires fix": {**SCENARIOS["hires fix, picture"], **SD3}}
