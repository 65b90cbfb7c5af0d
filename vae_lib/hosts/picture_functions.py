"""The functions that decode or encode a picture in A1111 and its forks, and what they are wrapped in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import processing, sd_samplers_common
from torch import Tensor

from vae_lib.guard.host import Points
from vae_lib.hosts import generations
from vae_lib.hosts.patching import Function


def _batch(points: Points, original: Function) -> Function:
    def decode_latent_batch(model: Any, batch: Tensor, *args: Any, **kwargs: Any) -> Any:
        return points.batch(model, batch, lambda: original(model, batch, *args, **kwargs))

    return decode_latent_batch


def _decode_first_stage(points: Points, original: Function) -> Function:
    def decode_first_stage(model: Any, x: Tensor) -> Any:
        with points.guarding(model, scaled=x):
            return original(model, x)

    return decode_first_stage


def _encode(points: Points, original: Function) -> Function:
    def images_tensor_to_samples(image: Tensor, approximation: Any = None, model: Any = None) -> Any:
        with points.guarding(model):
            return original(image, approximation, model)

    return images_tensor_to_samples


def _sample_to_image(points: Points, original: Function) -> Function:
    """The picture before hires fix, which the host may save; live previews do not ask for "Full"."""

    def sample_to_image(samples: Tensor, index: int = 0, approximation: Any = None) -> Any:
        if approximation != 0 or not points.is_generating():
            return original(samples, index, approximation)
        with points.guarding(scaled=samples[index : index + 1]):
            return original(samples, index, approximation)

    return sample_to_image


def _image_conditioning(points: Points, original: Function) -> Function:
    def image_conditioning(self: Any, *args: Any, **kwargs: Any) -> Any:
        with points.guarding(self.sd_model):
            return original(self, *args, **kwargs)

    return image_conditioning


WRAPPED: tuple[tuple[Any, str, Callable[[Points, Function], Function]], ...] = (
    (processing, "process_images_inner", generations.generation),
    (processing, "create_infotext", generations.infotext),
    (processing, "decode_latent_batch", _batch),
    (processing, "decode_first_stage", _decode_first_stage),
    (processing, "images_tensor_to_samples", _encode),
    (sd_samplers_common, "decode_first_stage", _decode_first_stage),
    (sd_samplers_common, "images_tensor_to_samples", _encode),
    (processing.sd_samplers, "sample_to_image", _sample_to_image),
    (processing.StableDiffusionProcessing, "inpainting_image_conditioning", _image_conditioning),
    (processing.StableDiffusionProcessing, "edit_image_conditioning", _image_conditioning),
)


def missing() -> list[str]:
    """The functions to wrap that this host does not have."""
    return [name for owner, name, _ in WRAPPED if not callable(getattr(owner, name, None))]
