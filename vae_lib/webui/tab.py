"""The VAE tab in the WebUI: the same components as without it, on the host's own lists and settings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import gradio as gr
import torch

from vae_lib.engine import Operation
from vae_lib.errors import printable
from vae_lib.files import files_in
from vae_lib.guard import MB, Guard, Kept
from vae_lib.guard.host import family_name, family_of
from vae_lib.hub import DownloadManager
from vae_lib.planning import Planner, Preference
from vae_lib.ui.backend import Backend, Checkpoint, KeptLatents, VAEFile
from vae_lib.ui.markup import CSS, note
from vae_lib.ui.tab import build_tab
from vae_lib.webui.downloads import Downloads
from vae_lib.webui.host import WebUI
from vae_lib.webui.unfinished import UnfinishedPictures, details

_UNLISTED = (".sft", ".gguf")  # that lie among the VAEs, and that few WebUIs list


class HostBackend(Backend):
    """On the host's VAEs, the pictures that are made with them, and the settings."""

    host: WebUI

    def __init__(self, guard: Guard, host: WebUI, downloads: Downloads) -> None:
        self._guard, self.host, self._downloads = guard, host, downloads
        self.unfinished = UnfinishedPictures(guard)

    def files(self) -> Sequence[VAEFile]:
        vaes = [VAEFile(name, path) for name, path in self.host.vae_files().items()]
        folder = self.host.folders().taesd
        files, closed = files_in(folder)
        tiny = [path for path in files if path.parent == folder and path.suffix in (".pth", ".safetensors")]
        known = {vae.path.resolve() for vae in vaes}
        for other in self.host.vae_folders():
            found, shut = files_in(other)
            closed |= shut
            unlisted = [path for path in found if path.suffix.lower() in _UNLISTED and path.resolve() not in known]
            names = {vae.name for vae in vaes}
            for path in unlisted:
                name = printable(path.relative_to(other).as_posix())
                vaes.append(VAEFile(printable(str(path)) if name in names else name, path))
        return [
            *vaes,
            *(VAEFile(f"VAE-taesd/{path.name}", path) for path in tiny),
            *(VAEFile(f"{printable(str(path))}/", path, said) for path, said in closed.items()),
        ]

    def checkpoint(self) -> Checkpoint | None:
        loaded, vae = self.host.checkpoint(), self.host.loaded()
        if loaded is None:
            return None
        title, path = loaded
        return Checkpoint(title, family_name(vae), path)

    def last_latents(self) -> Sequence[KeptLatents]:
        return [
            KeptLatents(_title(item), latents.tensor, item.space)
            for item in self._guard.kept.items()
            if (latents := item.latents_in_ram) is not None
        ]

    def device(self) -> torch.device:
        return self.host.device()

    def dtype(self) -> torch.dtype:
        return self.host.dtype()

    def reserve(self) -> int:
        return self._guard.settings().reserve_mb * MB

    def planner(self) -> Planner:
        return self._guard.planner()

    def preference(self, operation: Operation) -> Preference:
        return self._guard.preference(operation)

    def has_taesd(self, operation: Operation) -> bool:
        vae = self.host.loaded()
        return vae is not None and self._guard.taesd.load(family_of(vae), operation) is not None

    def spare(self) -> torch.device:
        return self._guard.settings().spare

    def size(self) -> tuple[int, int]:
        items = self._guard.kept.items()
        if items:
            return items[0].size
        checkpoint = self.checkpoint()
        return (512, 512) if checkpoint is None or checkpoint.family in ("SD1", "SD2") else (1024, 1024)

    def computing(self) -> AbstractContextManager[object]:
        return self.host.lock()

    def downloads(self) -> DownloadManager:
        return self._downloads.manager()

    def warning(self) -> str | None:
        return self._guard.unserved or None


def _title(item: Kept) -> str:
    """A few words for a list."""
    known = details(item)
    return ", ".join(known[name] for name in ("Time", "Size", "Checkpoint"))


def build(backend: HostBackend) -> list[tuple[Any, str, str]]:
    """The tab, as the host's ``on_ui_tabs`` wants it."""
    with gr.Blocks(analytics_enabled=False) as tab:
        build_tab(backend)
    return [(tab, "VAE", "vae_guard_tab")]


def build_note(sentence: str) -> list[tuple[Any, str, str]]:
    """A tab that only says something."""
    with gr.Blocks(analytics_enabled=False) as tab:
        gr.HTML(f"<style>{CSS}</style>", elem_classes="vg-hidden")
        gr.HTML(note(sentence, "warn"))
    return [(tab, "VAE", "vae_guard_tab")]
