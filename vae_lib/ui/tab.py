"""The VAE tab."""

from __future__ import annotations

import gradio as gr
from gradio.context import Context

from vae_lib.ui import markup
from vae_lib.ui.backend import Backend
from vae_lib.ui.compare_section import CompareSection
from vae_lib.ui.downloads_section import DownloadsSection
from vae_lib.ui.events import QUIET, look_button
from vae_lib.ui.files_section import FilesSection
from vae_lib.ui.library import Library
from vae_lib.ui.memory_section import MemorySection
from vae_lib.ui.unfinished_section import UnfinishedSection


def build_tab(backend: Backend) -> None:
    """Make the tab's components and their events; to be called inside a gr.Blocks, once.

    Long work runs in events that need the queue, several of them at once: ``blocks.queue(concurrency_count=...)``
    with more than one, which the WebUI does. Everything is filled again whenever the page is loaded.

    Raises:
        RuntimeError: outside a gr.Blocks.
    """
    root = Context.root_block
    if root is None:
        raise RuntimeError("build_tab must be called inside a gr.Blocks.")
    library = Library(backend)
    gr.HTML(f"<style>{markup.CSS}</style>", elem_classes="vg-hidden")
    gr.HTML(lambda: markup.note(backend.warning() or "", "warn"), elem_id="vg_warning")
    with gr.Tabs(elem_id="vg_tabs"):
        with gr.TabItem("Files", id="vg_files_tab") as files_tab:
            files_look = look_button()
            files = FilesSection(backend, library)
        with gr.TabItem("Compare", id="vg_compare_tab") as compare_tab:
            compare_look = look_button()
            compare = CompareSection(backend, library)
        with gr.TabItem("Memory", id="vg_memory_tab") as memory_tab:
            memory_look = look_button()
            memory = MemorySection(backend, library)
        with gr.TabItem("Downloads", id="vg_downloads_tab"):
            downloads = DownloadsSection(backend, library, files)
        unfinished = None
        if backend.unfinished is not None:
            with gr.TabItem("Unfinished", id="vg_unfinished_tab") as unfinished_tab:
                unfinished_look = look_button()
                unfinished = UnfinishedSection(backend.unfinished)
    root.load(files.watch, files.pick, files.table_outputs, **QUIET)
    root.load(downloads.watch, None, downloads.outputs, **QUIET).then(
        files.show, files.pick, files.table_outputs, **QUIET
    )
    if unfinished is not None:
        root.load(unfinished.show, None, unfinished.outputs, **QUIET)
        unfinished_tab.select(unfinished.show, None, unfinished.outputs, **QUIET)
        unfinished_look.click(unfinished.refresh, unfinished.pick, unfinished.outputs, **QUIET)
    for opened in (files_tab.select, files_look.click):
        opened(files.show, files.pick, files.table_outputs, **QUIET)
    for opened in (compare_tab.select, compare_look.click):
        opened(compare.choices, compare.given, compare.offered, **QUIET)
    for opened in (memory_tab.select, memory_look.click):
        opened(memory.choices, None, memory.vae, **QUIET).then(memory.show, memory.inputs, memory.outputs, **QUIET)
