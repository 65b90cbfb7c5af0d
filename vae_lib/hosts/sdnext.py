"""vladmandic's SD.Next, a descendant of A1111's WebUI that samples and decodes by diffusers' pipelines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import modules.processing_vae  # before all others, for no other WebUI has it
import torch
from modules import (
    paths,
    processing,
    scripts,
    sd_checkpoint,
    sd_samplers_common,
    sd_vae,
    shared,
)
from modules.api import script as api_script
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.errors import InputError
from vae_lib.guard import Notices
from vae_lib.guard.generation import Again
from vae_lib.guard.host import Folders, Points
from vae_lib.hosts import finishing, generations
from vae_lib.hosts.patching import Function
from vae_lib.hosts.pipeline_vae import PipelineVAE, keeping_own, note_file
from vae_lib.hosts.webui_family import WebUIFamily, api_arguments

_NOT_ITS_VAE = (
    "SD.Next did not put the VAE of these latents back. Choose it in Settings, or load their checkpoint again; or tick "
    "'With the VAE in use now' in VAE > Unfinished. Then decode them again."
)


class _Script(scripts.Script):
    """SD.Next looks at ``on_after_component_elem_id`` of those only that have this method as well."""

    def after_component(self, component: Any, **about: Any) -> None: ...


class Host(WebUIFamily):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "SD.Next"
    script_class = _Script
    failure: Exception | None = None  # of the last decode that SD.Next made nothing of

    def vae(self, model: Any = None) -> PipelineVAE | None:
        model = self.loaded_model() if model is None else model
        if not hasattr(model, "vae") and hasattr(model, "pipe"):
            model = model.pipe
        return None if model is None else PipelineVAE(model)

    def repair_dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    def checks_numbers(self) -> bool:
        return True

    def numeric_error(self, message: str) -> None:
        """It makes the picture black, and goes on."""

    # Its functions

    def wrap(self, points: Points) -> None:
        for owner, name, wrapper in _WRAPPED:
            self._patches.patch(owner, name, functools.partial(wrapper, self, points))

    # Kept latents

    def is_first_pass(self, p: Any) -> bool:
        """What is decoded meanwhile is enlarged and sampled on; where it is only enlarged, no other decode follows."""
        return bool((p.is_hr_pass and p.hr_force) or p.is_refiner_pass)

    def afterwards(self, p: Any) -> Afterwards:
        """It repeats postprocessing for a script runner of its own only."""
        noted = super().afterwards(p)
        more = {script.title(): finishing.is_on(p, script) for script in finishing.hosts_postprocessing(p.scripts)}
        more |= {"Detailer": p.detailer_enabled, p.hr_upscaler: p.is_hr_pass}
        return replace(noted, not_repeated=(*noted.not_repeated, *(str(name) for name, acts in more.items() if acts)))

    def has_checkpoint(self, name: str) -> bool:
        return name in sd_checkpoint.checkpoint_aliases

    def checkpoint_setting(self, name: str) -> Mapping[str, str]:
        loaded = self.loaded()
        is_loaded = loaded is not None and loaded.model_name == name
        return {} if is_loaded or not self.has_checkpoint(name) else {"sd_model_checkpoint": name}

    def output_folder(self, kind: str, tab: str) -> str:
        base, own = getattr(shared.opts, f"outdir_{kind}"), getattr(shared.opts, f"outdir_{tab}_{kind}")
        return str(paths.resolve_output_path(base, own))

    def prepare(self, p: Any, saved: bool | None) -> None:
        if saved is not None:
            p.samples_save, p.do_not_save_samples = saved, not saved
        p.vae_type, p.enable_hr, p.detailer_enabled = "Full", False, False
        if p.color_corrections is not None:
            images = map(Image.fromarray, p.color_corrections)
            p.color_corrections = [processing.setup_color_correction(image) for image in images]

    def finish(self, latents: Latents, again: Again, saved: bool | None) -> Sequence[tuple[Image.Image, str]]:
        from modules import processing_diffusers  # not at the start: importing it asks for the model

        wanted = {} if again.vae_in_use else finishing.noted_vae(latents, self.vae_settings)

        def sampled(p: Any) -> Any:
            if wanted and wanted != self.vae_of_generation():
                raise InputError(_NOT_ITS_VAE)
            return processing_diffusers.process_decode(p, SimpleNamespace(images=p.sample()))

        sampling, processing_diffusers.process_diffusers = processing_diffusers.process_diffusers, sampled
        self.failure = None
        try:
            pictures = super().finish(latents, again, saved)
        finally:
            processing_diffusers.process_diffusers = sampling
        if not pictures and self.failure is not None:
            raise self.failure
        return pictures

    def preview(self, latents: Tensor) -> Image.Image | None:
        try:
            image: Image.Image = sd_samplers_common.single_sample_to_image(latents, "Simple")
        except Exception:  # some families have none
            return None
        return image

    # The choice of a VAE

    own_vae: ClassVar[str] = "Default"
    taesd_setting: ClassVar[str] = "the panel, VAE type"
    assigns_vaes = False

    def vae_path(self) -> str | None:
        vae = self.vae()
        return None if vae is None else vae.file

    def select_vae(self, name: str) -> None:
        before = shared.opts.sd_vae
        try:
            super().select_vae(name)
        except InputError:
            shared.opts.sd_vae = before
            raise

    def select_automatically(self) -> None:
        """A checkpoint that was loaded with another VAE has not loaded its own."""
        super().select_automatically()
        info = getattr(self.loaded_model(), "sd_checkpoint_info", None)
        if info is not None and self.vae_path() != sd_vae.resolve_vae(info.filename)[0]:
            raise InputError("The setting is Automatic now, but SD.Next keeps the VAE until the model is reloaded.")

    def vae_folders(self) -> Sequence[Path]:
        return [Path(shared.opts.vae_dir).absolute()]

    def watch_vae_files(self, notices: Notices) -> None:
        """Diffusers loads them."""

    def assign_vae(self, name: str | None) -> None:
        raise InputError(f"{self.name} has no VAE of its own for each checkpoint; choose one in Settings.")

    def assigned_vae(self) -> None: ...

    def overrides_assignments(self) -> None: ...

    # Its page and its API

    def folders(self) -> Folders:
        data, models = Path(paths.data_path).absolute(), Path(paths.models_path).absolute()
        return Folders(data, self.vae_folders()[0], models / "VAE-taesd")

    def shown_infotext(self, text: str) -> str:
        """It makes the HTML itself."""
        return text

    def paste_field(self, component: Any, value_of: Callable[[dict[str, Any]], object], api: str) -> Any:
        return component, value_of

    def has_api(self) -> bool:
        return True

    def api_accounts(self) -> Mapping[str, str]:
        accounts: Mapping[str, str] = shared.api.credentials
        return accounts

    def on_api_arguments(self, title: str, convert: Callable[[Any], list[Any]]) -> None:
        self._patches.patch(api_script, "init_script_args", functools.partial(api_arguments, title, convert))


def _generation(host: Host, points: Points, original: Function) -> Function:
    """A pipeline decodes and encodes by itself whenever it likes, so the VAE is ours for the whole generation."""

    def guarded(p: Any) -> Any:
        with points.guarding():
            return original(p)

    return generations.generation(points, guarded)


def _infotext(host: Host, points: Points, original: Function) -> Function:
    return generations.infotext(points, original)


def _decode(host: Host, points: Points, original: Function) -> Function:
    """Whatever fails in there gives an empty list, and no picture: then the latents are kept, and that is said."""

    def full_vae_decode(latents: Tensor, model: Any) -> Any:
        nothing: list[Any] = []

        def decode() -> Any:
            with points.guarding(model):  # it may be another VAE than at the generation's start
                decoded = original(latents, model)
                vae = host.vae(model)
                failure = None if vae is None else vae.take_failure()
            if torch.is_tensor(decoded):
                return decoded
            nothing.append(decoded)
            raise failure or InputError("SD.Next could not decode the picture; its console says why.")

        try:
            return points.batch(model, latents, decode)
        except Exception as error:
            if not nothing:
                raise
            host.failure = error.with_traceback(None)  # which holds tensors
            return nothing[0]

    return full_vae_decode


def _encode(host: Host, points: Points, original: Function) -> Function:
    def full_vae_encode(image: Tensor, model: Any) -> Any:
        with points.guarding(model):
            return original(image, model)

    return full_vae_encode


def _load_vae(host: Host, points: Points, original: Function) -> Function:
    def load_vae(model_file: str, vae_file: str | None = None, *args: Any, **kwargs: Any) -> Any:
        vae = original(model_file, vae_file, *args, **kwargs)
        if vae is not None and vae_file is not None:
            note_file(vae, vae_file)
        return vae

    return load_vae


def _reload_vae(host: Host, points: Points, original: Function) -> Function:
    def reload_vae_weights(sd_model: Any = None, *args: Any, **kwargs: Any) -> Any:
        with keeping_own(sd_model or host.loaded_model()):
            return original(sd_model, *args, **kwargs)

    return reload_vae_weights


_WRAPPED: tuple[tuple[Any, str, Callable[[Host, Points, Function], Function]], ...] = (
    (processing, "process_images_inner", _generation),
    (processing, "create_infotext", _infotext),
    (modules.processing_vae, "full_vae_decode", _decode),
    (modules.processing_vae, "full_vae_encode", _encode),
    (sd_vae, "load_vae", _load_vae),
    (sd_vae, "reload_vae_weights", _reload_vae),
)


def is_here() -> bool:
    """
    Raises:
        AttributeError: when it is a version that lacks what we wrap.
    """
    if missing := [name for owner, name, _ in _WRAPPED if not callable(getattr(owner, name, None))]:
        raise AttributeError(", ".join(missing))
    return True
