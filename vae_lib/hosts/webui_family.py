"""What AUTOMATIC1111's WebUI and all of its descendants share. Their ``modules`` are imported when this is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from html import escape
from pathlib import Path
from typing import Any

import torch
from modules import (
    call_queue,
    devices,
    images,
    processing,
    script_callbacks,
    scripts,
    sd_models,
    shared,
)
from modules.call_queue import queue_lock
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.engine import Operation
from vae_lib.errors import InputError
from vae_lib.guard.generation import Again
from vae_lib.guard.host import Callbacks, HostVAE, Need, Setting
from vae_lib.hosts import finishing, page
from vae_lib.hosts.patching import Function, Patches
from vae_lib.hosts.sd_vae_setting import SDVAESetting

SECTION = ("vae_guard", "VAE Guard")


class WebUIFamily(SDVAESetting):
    """Implements all of ``guard.host.Host`` and ``webui.host.WebUI`` that does not differ."""

    name = "Stable Diffusion WebUI"
    is_known = True
    script_class = scripts.Script
    always_visible = scripts.AlwaysVisible

    def __init__(self) -> None:
        self._patches = Patches()

    # What is computed with, and how

    def device(self) -> torch.device:
        return torch.device(devices.device)

    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = devices.dtype_vae
        return dtype

    def lock(self) -> AbstractContextManager[object]:
        lock: AbstractContextManager[object] = queue_lock
        return lock

    @contextmanager
    def job(self, name: str) -> Iterator[None]:
        with queue_lock:
            shared.state.begin(name)
            try:
                yield
            finally:
                shared.state.end()

    def gpu_call(self, function: Function, extra_outputs: list[Any]) -> Function:
        made: Function = call_queue.wrap_gradio_gpu_call(function, extra_outputs=extra_outputs)
        return made

    # What is loaded

    def vae(self, model: Any = None) -> HostVAE | None:
        raise NotImplementedError  # each keeps it somewhere else

    def loaded(self) -> HostVAE | None:
        """The VAE of what is loaded now; unlike ``vae`` this never loads anything."""
        model = self.loaded_model()
        return None if model is None else self.vae(model)

    # The host's picture functions

    def unwrap(self) -> None:
        self._patches.undo_all()

    def afterwards(self, p: Any) -> Afterwards:
        return finishing.noted(p, self.vae_of_generation())

    def finish(self, latents: Latents, again: Again, saved: bool | None) -> Sequence[tuple[Image.Image, str]]:
        vae = {} if again.vae_in_use else self._vae_of(latents)
        settings = {**self.checkpoint_setting(latents.model_name), **vae}
        p = finishing.processing_of(latents, again, settings, self.output_folder, self.as_sampled)
        self.prepare(p, saved)
        try:
            processed = processing.process_images(p)
        except devices.NansException as error:
            raise InputError(str(error)) from error
        finally:
            p.close()
        first = processed.index_of_first_image
        return list(zip(processed.images[first:], processed.infotexts[first:], strict=False))

    def prepare(self, p: Any, saved: bool | None) -> None:
        """What else it takes for a processing object to finish kept latents; ``saved`` as in ``finish``."""
        raise NotImplementedError

    def checkpoint_setting(self, name: str) -> Mapping[str, str]:
        """The setting to override so that a checkpoint is loaded; empty where it would be in any case."""
        raise NotImplementedError

    def output_folder(self, kind: str, tab: str) -> str:
        """Where a tab's pictures (``kind`` is "samples"), or its grids, are saved."""
        folder = getattr(shared.opts, f"outdir_{kind}") or getattr(shared.opts, f"outdir_{tab}_{kind}")
        return str(folder)

    def as_sampled(self, latents: Tensor) -> Tensor:
        """Kept latents (B, C, h, w) in the shape that the loaded model's sampler gives them."""
        return latents

    def _vae_of(self, latents: Latents) -> Mapping[str, Any]:
        """The setting that chooses the VAE of these latents; empty where it is not known, or in use anyway.

        Raises:
            InputError: when the VAE is not there any more, or its file is another one.
        """
        chosen = finishing.noted_vae(latents, self.vae_settings)
        if chosen:
            known = latents.afterwards.values.get("sd_vae_hash")
            self.check_vae_is_there(chosen, known if isinstance(known, str) else None)
        loaded = self.loaded()
        is_loaded = loaded is not None and loaded.model_name == latents.model_name
        return {} if is_loaded and chosen == self.vae_of_generation() else chosen

    def grid(self, pictures: Sequence[Image.Image], batch_size: int, infotext: str, tab: str) -> Image.Image:
        grid: Image.Image = images.image_grid(list(pictures), batch_size)
        grid.info["parameters"] = infotext
        if shared.opts.grid_save:
            images.save_image(
                grid, self.output_folder("grids", tab), "grid", extension=shared.opts.grid_format, info=infotext,
                short_filename=not shared.opts.grid_extended_filename, grid=True,
            )  # fmt: skip
        return grid

    def shown_infotext(self, text: str) -> str:
        return "<p>" + "<br>\n".join(map(escape, text.split("\n"))) + "</p>"

    def has_served(self, path: str) -> bool:
        return any(os.path.abspath(path) in files for files in shared.demo.temp_file_sets)

    def is_interrupted(self) -> bool:
        return bool(shared.state.interrupted)

    def reserving(self, vae: Any, need: Need) -> AbstractContextManager[object]:
        return nullcontext()

    def make_room_for_own(self, vae: Any, operation: Operation, shape: tuple[int, ...]) -> None:
        """The family's first has no memory manager."""

    # A generation

    def infotexts(self, p: Any, count: int) -> list[str]:
        return [
            processing.create_infotext(
                p, p.prompts, p.seeds, p.subseeds, index=index, all_negative_prompts=p.negative_prompts
            )
            for index in range(count)
        ]

    def note(self, p: Any, entries: Mapping[str, str]) -> None:
        p.extra_generation_params.update(entries)

    def comment(self, p: Any, message: str) -> None:
        p.comment(message)

    def progress_text(self) -> str | None:
        text: str | None = shared.state.textinfo
        return text

    def show_progress_text(self, text: str | None) -> None:
        shared.state.textinfo = text

    def notify(self, message: str, *, warning: bool) -> None:
        page.notify(message, warning=warning)

    # Settings and folders

    def settings(self) -> Mapping[str, object]:
        """Of keys beginning as ours do; one that another extension owns is left out."""
        keys = {key for key in (*shared.opts.data, *shared.opts.data_labels) if key.startswith("vae_guard_")}
        return {key: getattr(shared.opts, key) for key in keys if self.owns(key)}

    def owns(self, key: str) -> bool:
        """Whether a setting is ours, or nobody's."""
        info = shared.opts.data_labels.get(key)
        return info is None or tuple(info.section or ())[:1] == SECTION[:1]

    # The life of the page

    def start(self, callbacks: Callbacks) -> None:
        """Register what is ours; called once each time the host loads the extension's script.

        From a thread of its own, because the host reads through the whole call stack for each: 20 ms less every time.
        """
        with ThreadPoolExecutor(1) as short_stack:
            short_stack.submit(self._register, callbacks).result()

    def _register(self, callbacks: Callbacks) -> None:
        def component_made(component: Any, **about: Any) -> None:
            callbacks.component_made(component, str(about.get("elem_id") or ""))

        ours: tuple[tuple[Function, Function], ...] = (  # all looked up before the first is registered
            (script_callbacks.on_ui_settings, lambda: self._add_settings(callbacks.settings_page())),
            (script_callbacks.on_ui_tabs, callbacks.tabs),
            (script_callbacks.on_model_loaded, lambda model: callbacks.model_loaded()),
            (script_callbacks.on_before_ui, callbacks.before_page),
            (script_callbacks.on_after_component, component_made),
            (script_callbacks.on_app_started, callbacks.page_started),
            (script_callbacks.on_script_unloaded, callbacks.stop),
        )
        for register, callback in ours:
            register(callback)

    def _add_settings(self, settings: Sequence[Setting]) -> None:
        for setting in settings:
            if not self.owns(setting.key):
                continue
            info = shared.OptionInfo(
                setting.default,
                setting.label,
                setting.component,
                setting.arguments,
                section=SECTION,
                category_id="sd",
            )
            if setting.info:
                info.info(setting.info)
            info.do_not_save = not setting.saved
            shared.opts.add_option(setting.key, info)

    def many_of(self) -> Any:
        """The settings page's component for several of a list."""
        from modules.ui_components import DropdownMulti

        return DropdownMulti

    def add_axes(self, axes: Sequence[tuple[str, type, Any, dict[str, Any]]]) -> None:
        """Add axes (label, type, apply, options) to the loaded X/Y/Z plot script, once."""
        for data in scripts.scripts_data:
            module = data.module
            if data.script_class.__module__ != "xyz_grid.py" or not hasattr(module, "axis_options"):
                continue
            present = {option.label for option in module.axis_options}
            module.axis_options.extend(
                module.AxisOption(label, kind, apply, **options)
                for label, kind, apply, options in axes
                if label not in present
            )

    def checkpoint(self) -> tuple[str, Path] | None:
        model = self.loaded_model()
        if model is None:
            return None
        return str(model.sd_checkpoint_info.title), Path(model.sd_checkpoint_info.filename)

    def loaded_model(self) -> Any:
        """The loaded checkpoint; unlike ``shared.sd_model`` asking does not load one."""
        return sd_models.model_data.sd_model


def checkpoint_name(model: Any) -> str:
    """Of the checkpoint that a model was loaded from."""
    return str(getattr(getattr(model, "sd_checkpoint_info", None), "name_for_extra", "?"))


def api_arguments(title: str, convert: Callable[[Any], list[Any]], original: Function) -> Function:
    """What the host makes a script's arguments by, with ours converted; a request is its second argument."""

    def init_script_args(first: Any, api_request: Any, *args: Any, **kwargs: Any) -> Any:
        for name, values in (getattr(api_request, "alwayson_scripts", None) or {}).items():
            if name.lower() == title and isinstance(values, dict) and "args" in values:
                values["args"] = convert(values["args"])
        return original(first, api_request, *args, **kwargs)

    return init_script_args
