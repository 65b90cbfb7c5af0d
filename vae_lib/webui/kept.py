"""The latents of the last generations, so that a picture can be decoded again.

They are in RAM; on disk as well from before the decode until the picture is there (see ``unfinished``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vae_lib.checkpoints import unfinished
from vae_lib.decode import Operation
from vae_lib.errors import InputError
from vae_lib.webui import generation, infotext, notices, options
from vae_lib.webui.request import Request

Pictures = list[tuple[Any, str]]  # PIL images with their infotexts
Result = TypeVar("Result")


@dataclass(eq=False)  # one batch is another's equal only if it is the same: tensors have no truth value
class Kept:
    """One batch of latents as the sampler left it.

    Attributes:
        latents: (B, C, h, w), scaled, on the CPU.
        infotexts: one per picture; empty until they are known.
        route: how it was decoded ("full", ...); None while it is not.
        scale_factor: the model's, to tell whether another model's VAE takes these latents.
        path: the file they lie in while there is no picture of them.
    """

    latents: Tensor
    model_name: str
    scale_factor: float
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    infotexts: list[str] = field(default_factory=list)
    route: str | None = None
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures."""
        return 8 * self.latents.shape[-1], 8 * self.latents.shape[-2]


_items: deque[Kept] = deque()
_unfinished: list[Kept] = []


def folder() -> Path:
    """Where latents lie on disk, below the host's data folder."""
    from modules import paths

    return Path(paths.data_path) / "vae-guard-latents"


def items() -> list[Kept]:
    """The kept batches, the latest first; then those that an earlier run did not finish."""
    return [*_items, *_unfinished]


def item(index: int) -> Kept:
    """One of ``items``.

    Raises:
        InputError: when there are not so many.
    """
    kept = items()
    if not 0 <= index < len(kept):
        raise InputError(
            f"There are no kept latents number {index}; {len(kept)} are kept (Settings > VAE Guard sets how many)."
        )
    return kept[index]


def clear() -> None:
    """Forget what is in RAM; files stay."""
    _items.clear()
    _unfinished.clear()


def restore() -> None:
    """Find what an earlier run did not finish, and say so."""
    found, problems = unfinished.found(folder())
    _unfinished[:] = [
        Kept(one.latents, one.model_name, one.scale_factor, one.created, one.infotexts, path=one.path)
        for one in found
    ]
    for problem in problems:
        notices.tell_once(problem, f"latents that were to be kept cannot be read: {problem}")
    if found:
        count = sum(len(one.latents) for one in found)
        notices.tell_once(
            f"unfinished {found[0].path}",
            f"{count} picture{'s were' if count > 1 else ' was'} not finished when the WebUI ended; the latents are "
            f"in {folder()}. Decode or remove them in the tab VAE > Unfinished.",
        )


def hold(current: generation.Generation, model: Any, batch: Tensor) -> Kept | None:
    """Keep a batch before it is decoded, so that a failure does not lose it.

    Not the first pass of hires fix: its picture is small, and not the one that was asked for.
    """
    settings = options.read()
    first_pass = getattr(current.p, "enable_hr", False) and not getattr(current.p, "is_hr_pass", False)
    if current.p is None or first_pass:
        return None
    info = getattr(model, "sd_checkpoint_info", None)
    held = Kept(
        batch.detach().to("cpu", copy=True), getattr(info, "name_for_extra", "?"), _scale_factor(model)
    )
    if settings.disk_mb > 0 and torch.isfinite(held.latents).all():
        held.infotexts = _infotexts(current.p, len(batch))
        try:
            held.path = unfinished.write(
                folder(),
                held.latents,
                held.model_name,
                held.scale_factor,
                held.infotexts,
                settings.disk_mb,
                _factors(model),
            )
        except InputError as error:
            notices.tell_once(
                "unfinished", f"the latents could not be saved before the decode: {error} It goes on without."
            )
    _items.appendleft(held)
    while len(_items) > settings.keep:
        dropped = _items.pop()
        if dropped.path is not None and dropped is not held:
            _unfinished.insert(0, dropped)
    return held


def finished(held: Kept | None, current: generation.Generation, records: Sequence[generation.Record]) -> None:
    """The batch was decoded: note how, and its infotexts."""
    if held is None:
        return
    routes = [record.outcome.plan.route.value for record in records if record.operation is Operation.DECODE]
    held.route = next(
        (route for route in routes if route == "taesd"), routes[0] if routes else "the WebUI's own"
    )
    held.infotexts = _infotexts(current.p, len(held.latents)) or held.infotexts
    _settle(held)


def failed(held: Kept | None) -> str:
    """Nothing could decode the batch: say where it is, and give the sentence for the error ("" if it is nowhere)."""
    if held is None or held.path is None:
        return ""
    if held not in items():
        _unfinished.insert(0, held)
    sentence = (
        f"the picture could not be decoded, but it is not lost: its latents are in {held.path}. Free some memory or "
        "choose another VAE, then decode them in the tab VAE > Unfinished."
    )
    notices.tell(sentence, warning=True)
    return sentence


def remove(held: Kept) -> None:
    """Throw a batch away, file and all."""
    _settle(held)
    if held in _items:
        _items.remove(held)


def _settle(held: Kept) -> None:
    """No file is needed any more."""
    if held.path is not None:
        try:
            held.path.unlink(missing_ok=True)
        except OSError as error:
            notices.tell_once(f"discard {held.path}", f"{held.path} could not be removed: {error.strerror}.")
        held.path = None
    if held in _unfinished:
        _unfinished.remove(held)


def _infotexts(p: Any, count: int) -> list[str]:
    from modules import processing

    try:
        return [
            processing.create_infotext(
                p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
            )
            for index in range(count)
        ]
    except Exception as error:  # other extensions' entries may fail; the latents matter more
        notices.log.warning("no infotext for the kept latents: %s", error)
        return []


def redecode(held: Kept, deliver: Callable[[Pictures], Result]) -> Result:
    """Decode a kept batch once more, exactly, by the loaded VAE; its file goes when ``deliver`` has the pictures.

    Takes the host's queue lock.

    Raises:
        InputError: when the loaded model is of another family, or its VAE gives no numbers.
    """
    from modules.call_queue import queue_lock

    with queue_lock:
        delivered = deliver(_redecode(held))
        _settle(held)
        return delivered


def _redecode(held: Kept) -> Pictures:
    import numpy as np
    from modules import devices, lowvram, processing, shared
    from PIL import Image

    from vae_lib.webui import hooks

    model = shared.sd_model
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
                try:
                    decoded = processing.sd_samplers_common.samples_to_images_tensor(latents, 0, model)
                except devices.NansException as error:
                    raise InputError(f"{error} The latents are kept.") from error
            image = ((decoded[0].float().cpu() + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).numpy()
            text = held.infotexts[number] if number < len(held.infotexts) else ""
            done = infotext.describe(current.records[-1]) if current.records else "the WebUI's own decode"
            pictures.append((Image.fromarray(image.astype(np.uint8)), infotext.replaced(text, done)))
    if lowvram.is_enabled(model):
        lowvram.send_everything_to_cpu()
    devices.torch_gc()
    held.route = current.records[-1].outcome.plan.route.value if current.records else "the WebUI's own"
    return pictures


def save(pictures: Pictures) -> Pictures:
    """Save pictures among the host's; the same pictures."""
    from modules import images, shared

    for image, text in pictures:
        image.info["parameters"] = text
        images.save_image(
            image, shared.opts.outdir_samples or shared.opts.outdir_txt2img_samples, "", info=text,
            extension=shared.opts.samples_format, suffix="-full",
        )  # fmt: skip
    return pictures


def redecode_for_page(gallery: Any) -> tuple[Any, str]:
    """The button: the last generation's pictures, exact, saved and put before those in the gallery."""
    import gradio as gr
    from modules.ui_common import plaintext_to_html

    try:
        pictures = redecode(item(0), save)
    except InputError as error:
        return gr.update(), plaintext_to_html(str(error))
    before = [item["name"] if isinstance(item, dict) else item for item in gallery or []]
    before = [
        item.split("?")[0] if isinstance(item, str) else item for item in before
    ]  # the host adds a time
    return [*(image for image, _ in pictures), *before], plaintext_to_html(pictures[0][1])


def _scale_factor(model: Any) -> float:
    return float(getattr(model, "scale_factor", 0.0))


def _factors(model: Any) -> tuple[float, float]:
    """Scaling and shift factor: SD3 has them in its latent format."""
    form = getattr(model, "latent_format", None)
    if form is None:
        return _scale_factor(model), 0.0
    return float(form.scale_factor), float(getattr(form, "shift_factor", 0.0))
