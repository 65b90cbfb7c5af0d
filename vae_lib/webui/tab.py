"""The VAE tab in the WebUI: the same components as without it, on the host's own lists and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from vae_lib.decode import free_bytes
from vae_lib.errors import InputError, printable
from vae_lib.files import files_in, is_gone, write_atomically
from vae_lib.hub import DownloadManager
from vae_lib.ui.backend import Checkpoint, KeptLatents, Memory, VAEFile
from vae_lib.webui import downloads, first_stage, kept, memory, notices, options, vae_files


class HostBackend:
    """Implements ``vae_lib.ui.backend.Backend`` on the host."""

    def files(self) -> Sequence[VAEFile]:
        from modules import sd_vae

        vaes = [VAEFile(name, Path(path)) for name, path in sd_vae.vae_dict.items()]
        folder = first_stage.taesd_folder()
        files, closed = files_in(folder)
        tiny = [path for path in files if path.parent == folder and path.suffix in (".pth", ".safetensors")]
        for other in vae_files.folders():
            closed |= files_in(other)[1]
        return [
            *vaes,
            *(VAEFile(f"VAE-taesd/{path.name}", path) for path in tiny),
            *(VAEFile(f"{printable(str(path))}/", path, said) for path, said in closed.items()),
        ]

    def refresh(self) -> None:
        from modules import sd_vae

        sd_vae.refresh_vae_list()

    def in_use(self) -> str | None:
        from modules import sd_vae

        return next((name for name, path in sd_vae.vae_dict.items() if path == sd_vae.loaded_vae_file), None)

    def checkpoint(self) -> Checkpoint | None:
        model = _loaded_model()
        if model is None:
            return None
        return Checkpoint(model.sd_checkpoint_info.title, first_stage.family_of(model))

    def cannot_select(self) -> str | None:
        from modules import shared

        if shared.cmd_opts.vae_path is not None:
            return "The VAE was chosen on the command line (--vae-path); start without it to choose one here."
        return None

    def select(self, name: str) -> None:
        from modules import sd_vae, shared

        path = sd_vae.vae_dict.get(name)
        if path is None:
            raise InputError(
                f"{name} is not among the WebUI's VAEs; TAESD is chosen in Settings > VAE instead."
            )
        shared.opts.set("sd_vae", name)  # loads it, by the host's own callback and under its lock
        if _loaded_model() is not None and sd_vae.loaded_vae_file != path:
            raise InputError(
                f"{name} was not loaded; the console says why. The VAE that was in use stays in use."
            )
        shared.opts.save(shared.config_filename)

    def assign(self, name: str) -> None:
        from modules import extra_networks, sd_vae

        model = _loaded_model()
        if model is None:
            raise InputError("No checkpoint is loaded yet; generate a picture first.")
        if name not in sd_vae.vae_dict:
            raise InputError(f"{name} is not among the WebUI's VAEs.")
        checkpoint = Path(model.sd_checkpoint_info.filename)
        metadata = {**extra_networks.get_user_metadata(str(checkpoint)), "vae": name}
        text = json.dumps(metadata, indent=4)
        write_atomically(
            checkpoint.with_suffix(".json"), lambda aside: aside.write_text(text, encoding="utf-8")
        )

    def last_latents(self) -> Sequence[KeptLatents]:
        return [KeptLatents(_title(item), item.latents, _family_of(item)) for item in kept.items()]

    def unfinished(self) -> Sequence[str] | None:
        return [_title(item) for item in _unfinished_items()]

    def finish(self, title: str) -> Sequence[Any]:
        return [image for image, _ in kept.redecode(_unfinished(title), kept.save)]

    def discard(self, title: str) -> None:
        kept.remove(_unfinished(title))

    def report(self) -> str:
        return notices.last_report()

    def devices(self) -> Sequence[torch.device]:
        from modules import devices

        return (torch.device(devices.device),)

    def dtype(self) -> torch.dtype:
        from modules import devices

        dtype: torch.dtype = devices.dtype_vae
        return dtype

    def memory(self, device: torch.device) -> Memory:
        if device.type == "cuda":
            total = int(torch.cuda.get_device_properties(device).total_memory)
        else:
            import psutil

            total = int(psutil.virtual_memory().total)
        return Memory(total, free_bytes(device), options.read().reserve_mb * memory.MB)

    def size(self) -> tuple[int, int]:
        items = kept.items()
        if items:
            return items[0].size
        checkpoint = self.checkpoint()
        return (512, 512) if checkpoint is None or checkpoint.family in ("SD1", "SD2") else (1024, 1024)

    def computing(self) -> AbstractContextManager[object]:
        from modules.call_queue import queue_lock

        lock: AbstractContextManager[object] = queue_lock
        return lock

    def downloads(self) -> DownloadManager | None:
        return downloads.manager()


def _title(item: kept.Kept) -> str:
    """A few words for a list; an older picture's with its day."""
    created = item.created.astimezone()
    day = "" if created.date() == datetime.now().date() else f"{created:%Y-%m-%d} "
    several = f"{len(item.latents)} x " if len(item.latents) > 1 else ""
    return f"{day}{created:%H:%M:%S}, {several}{item.size[0]}x{item.size[1]}, {item.model_name}"


def _unfinished_items() -> list[kept.Kept]:
    """A file that was removed by hand is not wanted any more."""
    return [item for item in kept.items() if item.path is not None and not is_gone(item.path)]


def _unfinished(title: str) -> kept.Kept:
    for item in _unfinished_items():
        if _title(item) == title:
            return item
    raise InputError("These latents are not there any more; reload the page for a new list.")


def _family_of(item: kept.Kept) -> str | None:
    if item.latents.shape[1] != 4:
        return "SD3"
    return "SDXL" if abs(item.scale_factor - 0.13025) < 1e-6 else "SD1"


def _loaded_model() -> Any:
    """The loaded checkpoint; unlike ``shared.sd_model`` asking does not load one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def build() -> list[tuple[Any, str, str]]:
    """The tab, as the host's ``on_ui_tabs`` wants it."""
    import gradio as gr

    from vae_lib.ui.tab import build_tab

    with gr.Blocks(analytics_enabled=False) as tab:
        build_tab(HostBackend())
    return [(tab, "VAE", "vae_guard_tab")]
