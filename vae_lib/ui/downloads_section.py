"""The fourth section: VAEs from the catalog, or from any repository of the Hugging Face hub."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vae_lib.errors import VAEGuardError
from vae_lib.hub import (
    AmbiguousReference,
    Catalog,
    DownloadManager,
    GatedRepository,
    Job,
    PickleRefused,
    TargetExists,
    load_catalog,
    partial_downloads,
)
from vae_lib.ui import markup
from vae_lib.ui.backend import Backend
from vae_lib.ui.events import QUIET
from vae_lib.ui.files_section import FilesSection, use
from vae_lib.ui.hints import hinted
from vae_lib.ui.library import Library
from vae_lib.units import size_text

PICK = "vg_pick_entry"
SHOWN = 6  # the newest jobs
_HEAD = ("Name", "For", "What it is for", "Size", "Licence")


class DownloadsSection:
    """The components; ``outputs`` are those that ``show`` fills."""

    def __init__(self, backend: Backend, library: Library, files: FilesSection) -> None:
        self._backend, self._library = backend, library
        self._manager = backend.downloads()
        try:
            self._catalog, problem = load_catalog(), ""
        except VAEGuardError as error:
            self._catalog, problem = Catalog(()), str(error)
        ids = [entry.id for entry in self._catalog.entries]
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.reference = gr.Textbox(
                    label="What to download",
                    placeholder="Name, owner/name or address",
                    max_lines=1,
                    elem_id="vg_reference",
                )
                self.choice = gr.Dropdown(
                    [], label="Several files may be meant: choose one", visible=False, elem_id="vg_choice"
                )
                self.pickles = gr.Checkbox(
                    False,
                    label="Allow pickles (.ckpt, .pt): they can carry code. Checked without running any of it.",
                    elem_id="vg_pickles",
                )
                self.rename = gr.Checkbox(
                    False,
                    label="Keep both when another file has the name",
                    visible=False,
                    elem_id="vg_rename",
                )
                start = gr.Button("Download", variant="primary", elem_id="vg_download")
                for component, text in (
                    (
                        self.reference,
                        "A name in the table, owner/name, owner/name/file or an address, on Hugging Face or the mirror "
                        "that HF_ENDPOINT names",
                    ),
                    (self.choice, "The repository has several files of weights"),
                    (self.pickles, "Off: only .safetensors files, which cannot carry code, are fetched"),
                    (self.rename, "The new file gets a number; nothing is ever overwritten"),
                    (start, "Fetch it, check it, and put it among the VAEs; an interrupted download is resumed"),
                ):
                    hinted(component, text)
                self.said = gr.HTML(elem_id="vg_download_said")
                self.slots = [_Slot(number) for number in range(SHOWN)]
                self.unfinished = gr.HTML(elem_id="vg_parts")
            with gr.Column(scale=5, min_width=320):
                gr.HTML(markup.note(problem, "bad") + self._catalog_table(), elem_id="vg_catalog")
                pick = gr.Radio(ids, elem_id=PICK, elem_classes="vg-hidden")
        self.outputs = [
            *(component for slot in self.slots for component in slot.components),
            self.unfinished,
            self.choice,
            self.rename,
        ]
        pick.input(lambda entry: (entry, gr.update(value=None)), pick, [self.reference, pick], **QUIET)
        self.choice.input(lambda chosen: chosen or gr.update(), self.choice, self.reference, **QUIET)
        starting = [self.reference, self.pickles, self.rename]
        for event in (start.click, self.reference.submit):
            event(self._start, starting, self.said, **QUIET).then(self.watch, None, self.outputs, **QUIET).then(
                files.show, files.pick, files.table_outputs, **QUIET
            )
        for slot in self.slots:
            slot.cancel.click(self._cancel, slot.job, self.said, queue=False, **QUIET).then(
                self.show, None, self.outputs, **QUIET
            )
            slot.use.click(self._use, slot.job, self.said, **QUIET).then(
                files.show, files.pick, files.table_outputs, **QUIET
            )

    def _catalog_table(self) -> str:
        rows = []
        for index, entry in enumerate(self._catalog.entries):
            marks = "".join(
                f" {markup.chip(text)}"
                for text, wanted in (
                    ("gated", entry.gated),
                    ("pickle", entry.pickle),
                    ("TAESD", entry.kind == "TAESD"),
                )
                if wanted
            )
            page = f'<a href="{escape(entry.page)}" target="_blank" rel="noopener">{escape(entry.licence)}</a>'
            rows.append(
                [
                    (markup.pick_button(PICK, index, entry.id, "vg_reference") + marks, ""),
                    (escape(entry.family), ""),
                    (escape(entry.purpose), "vg-wide"),
                    (size_text(entry.size) if entry.size else "–", "vg-num"),
                    (page, ""),
                ]
            )
        return markup.table(_HEAD, rows, empty="The catalog is empty.")

    def _start(self, reference: str, pickles: bool, rename: bool) -> str:
        if not reference.strip():
            return markup.note("Click a name in the table, or write what to download.", "warn")
        try:
            self._manager.start(reference, allow_pickle=pickles, on_conflict="rename" if rename else "ask")
        except VAEGuardError as error:
            return markup.note(str(error), "bad")
        return ""

    def _cancel(self, job_id: str | None) -> str:
        if job_id:
            self._manager.cancel(job_id)
        return ""

    def _use(self, job_id: str | None) -> str:
        job = self._manager.job(job_id or "")
        if job is None or job.result is None:
            return markup.note("That file is not there any more.", "warn")
        wanted = job.result.path.resolve()
        name = next((f.name for f in self._backend.files() if f.path.resolve() == wanted), None)
        if name is None:
            return markup.note(f"{job.result.path.name} is used by VAE Guard itself; nothing has to be chosen.")
        return use(self._backend, self._library, name)

    def show(self) -> list[Any]:
        """The jobs as they are now, the newest first, and the choices that a failed one leaves open."""
        jobs = list(self._manager.jobs())[::-1][:SHOWN]
        updates: list[Any] = []
        for slot, job in zip(self.slots, [*jobs, *[None] * SHOWN], strict=False):
            updates += slot.update(job)
        newest = jobs[0].error if jobs else None
        choice = gr.update(visible=False)
        if isinstance(newest, AmbiguousReference):
            choice = gr.update(visible=True, choices=list(newest.candidates), value=None)
        rename = gr.update(visible=True) if isinstance(newest, TargetExists) else gr.update()
        return [*updates, _unfinished(self._manager, jobs), choice, rename]

    def watch(self) -> Iterator[list[Any]]:
        """``show`` until nothing is running any more; what was downloaded is then in the folders."""
        while True:
            active = any(job.active for job in self._manager.jobs())
            if not active:
                try:
                    self._library.refresh()
                except VAEGuardError as error:
                    gr.Warning(str(error))
            yield self.show()
            if not active:
                return
            time.sleep(0.4)


class _Slot:
    """A job with its buttons."""

    def __init__(self, number: int) -> None:
        self.job = gr.State(None)
        with gr.Column(visible=False, elem_id=f"vg_job_{number}") as self.box:
            self.html = gr.HTML()
            with gr.Row():
                self.cancel = gr.Button("Cancel", size="sm", visible=False, min_width=80, elem_id=f"vg_cancel_{number}")
                self.use = gr.Button("Use it now", size="sm", visible=False, min_width=80, elem_id=f"vg_use_{number}")
        hinted(self.cancel, "Stop; downloaded data is kept, and the next attempt resumes from it")
        hinted(self.use, "Make it the VAE in use")
        self.components = [self.job, self.box, self.html, self.cancel, self.use]

    def update(self, job: Job | None) -> list[Any]:
        if job is None:
            return [None, gr.update(visible=False), "", gr.update(), gr.update()]
        usable = job.result is not None and not job.result.identity.is_taesd
        return [
            job.id,
            gr.update(visible=True),
            job_html(job),
            gr.update(visible=job.active),
            gr.update(visible=usable),
        ]


def job_html(job: Job) -> str:
    """A job's name, bar and line."""
    name = f"<b>{escape(job.reference)}</b> {markup.chip(job.state, on=job.state == 'done')}"
    if job.active:
        return markup.page(f"<div>{name}</div>{markup.progress(job.fraction)}<div>{escape(job.message)}</div>")
    kind = {"done": "", "failed": "vg-bad-text"}.get(job.state, "vg-dim")
    hint = ""
    if isinstance(job.error, GatedRepository):
        url = escape(job.error.url)
        hint = f'<p><a href="{url}" target="_blank" rel="noopener">{url}</a></p>'
    elif isinstance(job.error, PickleRefused):
        hint = "<p>Tick <i>Allow pickles</i> and download it again if you trust its author.</p>"
    elif isinstance(job.error, TargetExists):
        hint = f"<p>Tick <i>Keep both</i> and download it again to save it as {escape(job.error.free_name)}.</p>"
    return markup.page(f'<div>{name}</div><div class="{kind}">{escape(job.message)}</div>{hint}')


def _unfinished(manager: DownloadManager, jobs: Sequence[Job]) -> str:
    """Parts of downloads that nobody is fetching."""
    running = {job.reference for job in jobs if job.active}
    folders = [folder for folder in (manager.folder, manager.taesd_folder) if folder is not None]
    items = [
        f"<li>{escape(part.reference)}: {size_text(part.done)}"
        + (f" of {size_text(part.size)}" if part.size else "")
        + "</li>"
        for folder in folders
        for part in _parts(folder)
        if part.reference not in running and not any(job.active for job in jobs)
    ]
    if not items:
        return ""
    return markup.page(
        f'<p class="vg-dim">Unfinished; downloading one again continues it:</p><ul>{"".join(items)}</ul>'
    )


def _parts(folder: Path) -> Sequence[Any]:
    try:
        return partial_downloads(folder)
    except OSError:
        return ()
