"""The latents of the last generations, so that a picture can be decoded again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from vae_lib.errors import InputError
from vae_lib.webui import generation, infotext, notices, options
from vae_lib.webui.request import Request


@dataclass
class Kept:
    """One batch of latents as the sampler left it.

    Attributes:
        latents: (B, C, h, w), scaled, on the CPU.
        infotexts: one per picture; empty until they are known.
        route: how it was decoded ("full", ...); None while it is not.
        scale_factor: the model's, to tell whether another model's VAE takes these latents.
    """

    latents: Tensor
    model_name: str
    scale_factor: float
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    infotexts: list[str] = field(default_factory=list)
    route: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]


_items: deque[Kept] = deque()


def items() -> list[Kept]:
    """The kept batches, the latest first."""
    return list(_items)


def clear() -> None:
    _items.clear()


def hold(current: generation.Generation, model: Any, batch: Tensor) -> Kept | None:
    """Keep a batch before it is decoded, so that a failure does not lose it."""
    keep = options.read().keep
    first_pass = getattr(current.p, "enable_hr", False) and not getattr(current.p, "is_hr_pass", False)
    if keep == 0 or current.p is None or first_pass:
        return None
    info = getattr(model, "sd_checkpoint_info", None)
    held = Kept(
        batch.detach().to("cpu", copy=True), getattr(info, "name_for_extra", "?"), _scale_factor(model)
    )
    _items.appendleft(held)
    while len(_items) > keep:
        _items.pop()
    return held


def finished(held: Kept | None, current: generation.Generation, records: Sequence[generation.Record]) -> None:
    """The batch was decoded: note how, and its infotexts."""
    if held is None:
        return
    from modules import processing

    routes = [record.outcome.plan.route.value for record in records if record.operation == "decode"]
    held.route = next(
        (route for route in routes if route == "taesd"), routes[0] if routes else "the WebUI's own"
    )
    p = current.p
    try:
        held.infotexts = [
            processing.create_infotext(
                p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
            )
            for index in range(len(held.latents))
        ]
    except Exception as error:  # other extensions' entries may fail; the latents matter more
        notices.log.warning("no infotext for the kept latents: %s", error)


def redecode(index: int = 0) -> list[tuple[Any, str]]:
    """Decode a kept batch once more, exactly, by the loaded VAE.

    The caller holds the host's queue lock.

    Returns:
        Pictures (PIL) with their infotexts.

    Raises:
        InputError: when there is no such batch, or the loaded model is of another family.
    """
    import numpy as np
    from modules import devices, lowvram, processing, shared
    from PIL import Image

    from vae_lib.webui import hooks

    if not 0 <= index < len(_items):
        raise InputError(
            f"There are no kept latents number {index}; {len(_items)} are kept (Settings > VAE Guard sets how many)."
        )
    held, model = _items[index], shared.sd_model
    if (
        _scale_factor(model) != held.scale_factor
        or getattr(model, "latent_channels", 4) != held.latents.shape[1]
    ):
        raise InputError(
            f"These latents are of {held.model_name}, and the loaded checkpoint is of another family; "
            "load that checkpoint first."
        )
    pictures = []
    with torch.no_grad(), generation.running(None, Request(decode_by="Full")) as current:
        for number, latents in enumerate(torch.split(held.latents, 1)):
            latents = latents.to(devices.device, devices.dtype_vae)
            with hooks.guarding(model, scaled=None), devices.without_autocast():
                decoded = processing.sd_samplers_common.samples_to_images_tensor(latents, 0, model)
            image = ((decoded[0].float().cpu() + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).numpy()
            text = held.infotexts[number] if number < len(held.infotexts) else ""
            done = infotext.describe(current.records[-1]) if current.records else "the WebUI's own decode"
            pictures.append((Image.fromarray(image.astype(np.uint8)), infotext.replaced(text, done)))
    if lowvram.is_enabled(model):
        lowvram.send_everything_to_cpu()
    devices.torch_gc()
    held.route = current.records[-1].outcome.plan.route.value if current.records else held.route
    return pictures


def redecode_for_page(gallery: Any) -> tuple[Any, str]:
    """The button: the last generation's pictures, exact, saved and put before those in the gallery."""
    import gradio as gr
    from modules import images, shared
    from modules.call_queue import queue_lock
    from modules.ui_common import plaintext_to_html

    try:
        with queue_lock:
            pictures = redecode(0)
    except InputError as error:
        return gr.update(), plaintext_to_html(str(error))
    shown = []
    for image, text in pictures:
        image.info["parameters"] = text
        images.save_image(
            image, shared.opts.outdir_samples or shared.opts.outdir_txt2img_samples, "", info=text,
            extension=shared.opts.samples_format, suffix="-full",
        )  # fmt: skip
        shown.append(image)
    before = [item["name"] if isinstance(item, dict) else item for item in gallery or []]
    before = [
        item.split("?")[0] if isinstance(item, str) else item for item in before
    ]  # the host adds a time
    return [*shown, *before], plaintext_to_html(pictures[0][1])


def _scale_factor(model: Any) -> float:
    return float(getattr(model, "scale_factor", 0.0))
