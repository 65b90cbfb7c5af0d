"""The second section: the same latents or picture through several VAEs and routes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vae_lib.checkpoints import FAMILIES, load_latents, space_in
from vae_lib.decode.wording import time_text
from vae_lib.errors import InputError, VAEGuardError
from vae_lib.planning import Route
from vae_lib.planning.route import EXACT
from vae_lib.ui import markup
from vae_lib.ui.backend import Backend
from vae_lib.ui.compare import (
    AUTO,
    ORIGINAL,
    WHOSE,
    Cell,
    Comparer,
    Comparison,
    Source,
    caption,
    difference,
    picture_tensor,
    to_image,
)
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.library import Library
from vae_lib.ui.versions import LOSSLESS
from vae_lib.units import size_text

_LAST, _PICTURE, _FILE = "Last latents", "A picture", "A latents file"
_VISIBLE = "Until visible"
_GAINS = {_VISIBLE: None, "1 ×": 1.0, "10 ×": 10.0, "100 ×": 100.0, "1000 ×": 1000.0}
_BY_FILE = "As the files say"
_EXAMPLE = Path(__file__).parents[1] / "data" / "coffee.jpg"
_HEAD = ("VAE", "Route", "Time", "Memory", "Against the first")


class CompareSection:
    def __init__(self, backend: Backend, library: Library) -> None:
        self._backend, self._library, self._comparer = backend, library, Comparer(backend)
        kept = [latents.title for latents in backend.last_latents()]
        start = _LAST if kept else _PICTURE
        has_spare = backend.spare() != backend.device()
        routes = [AUTO, *(route.caption for route in EXACT if has_spare or not route.elsewhere)]
        others = "TAESD: choose its file among the VAEs."
        if not has_spare:
            others += (
                f" {Route.CPU.caption}: all of them run on it here, where {Route.FULL.caption} and "
                f"{Route.TILED.caption} are the same until memory is short."
            )
        example = str(_EXAMPLE) if not kept and os.path.isfile(_EXAMPLE) else None
        self.number = gr.State(None)
        self.chosen = gr.State(False)  # whether the user has chosen what to decode
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.source = gr.Radio([_LAST, _PICTURE, _FILE], value=start, label="Decode", elem_id="vg_source")
                self.kept = gr.Dropdown(
                    kept, value=kept[0] if kept else None, label="Latents of", visible=start == _LAST,
                    elem_id="vg_kept",
                )  # fmt: skip
                self.picture = gr.Image(
                    example, type="pil", label="Picture, encoded first by each VAE", height=220,
                    visible=start == _PICTURE, elem_id="vg_picture", **LOSSLESS,
                )  # fmt: skip
                self.file = gr.File(
                    label="Latents", file_types=[".safetensors", ".latent", ".npz", ".npy", ".pt"],
                    visible=start == _FILE, elem_id="vg_latents",
                )  # fmt: skip
                self.family = gr.Dropdown(
                    [_BY_FILE, *FAMILIES], value=_BY_FILE, label=WHOSE, visible=start != _PICTURE, elem_id="vg_whose"
                )
                self.vaes = gr.Dropdown([], multiselect=True, label="VAEs", elem_id="vg_vaes")
                self.routes = gr.CheckboxGroup(
                    routes, value=[AUTO, Route.TILED.caption], label="Routes", info=others, elem_id="vg_route_boxes"
                )  # fmt: skip
                self.limit = gr.Number(
                    0, label="Memory limit of each decode, in MB (0: what is free)", precision=0,
                    elem_id="vg_limit",
                )  # fmt: skip
                with gr.Row():
                    go = gr.Button("Compare", variant="primary", elem_id="vg_compare", min_width=120)
                    self.stop = gr.Button("Stop", interactive=False, elem_id="vg_stop", min_width=80)
            with gr.Column(scale=5, min_width=320):
                self.status = gr.HTML(
                    markup.page('<p class="vg-dim">Choose VAEs and routes, then Compare.</p>'),
                    elem_id="vg_status",
                )
                self.gallery = gr.Gallery(
                    label="Pictures", columns=3, object_fit="contain", visible=False, elem_id="vg_gallery", **LOSSLESS
                )
                self.table = gr.HTML(elem_id="vg_results")
                with gr.Row(visible=False) as self.difference_row:
                    self.one = gr.Dropdown([], label="Difference of", min_width=250, elem_id="vg_one")
                    self.other = gr.Dropdown([], label="And", min_width=250, elem_id="vg_other")
                    self.gain = gr.Dropdown(
                        list(_GAINS), value=_VISIBLE, label="Amplified", min_width=150,
                        elem_id="vg_gain",
                    )  # fmt: skip
                self.said = gr.HTML(elem_id="vg_difference_said")
                self.shown = gr.Image(
                    label="Difference", type="pil", visible=False, height=380, interactive=False,
                    elem_id="vg_difference", **LOSSLESS,
                )  # fmt: skip
        for component, text in (
            (
                self.source,
                "The latents of a picture that was generated, a picture of yours, or latents in a file",
            ),
            (
                self.kept,
                "The pictures of this session whose latents are kept: Settings > VAE Guard says how many",
            ),
            (self.picture, "Each VAE encodes it, and decodes its own latents"),
            (self.file, "Latents that VAE Guard or another program has written"),
            (self.family, "Where the files do not tell whose latents they are, or contradict themselves"),
            (self.vaes, "Each of them decodes by each of the routes"),
            (self.routes, "Automatic: the fastest exact route that fits. All give the same picture"),
            (self.limit, "To see what would be done with less memory than is free"),
            (go, "Decode, measure, and compare the pictures"),
            (self.stop, "End after the decode that is running"),
            (self.one, "One of the two pictures"),
            (self.other, "The other of the two"),
            (self.gain, "How much the difference is enlarged"),
        ):
            hinted(component, text)
        self.given, self.offered = [self.chosen, self.vaes], [self.vaes, self.kept, self.source]
        self.source.input(lambda: True, None, self.chosen, **QUIET)
        self.source.change(self._switch, self.source, [self.kept, self.picture, self.file, self.family], **QUIET)
        self.vaes.change(self._likeliest_first, [self.vaes, self.family], self.family, **QUIET)
        inputs = [self.source, self.kept, self.picture, self.file, self.family, self.vaes, self.routes, self.limit]
        results = [self.status, self.gallery, self.table, self.number, self.stop]
        views = [self.difference_row, self.one, self.other]
        go.click(self.run, inputs, results, **QUIET).then(self._offer, self.number, views, **QUIET).then(
            self._difference, [self.number, self.one, self.other, self.gain], [self.said, self.shown], **QUIET
        )
        self.stop.click(self._stop, self.number, None, queue=False, **QUIET)
        for component in (self.one, self.other, self.gain):
            component.input(
                self._difference,
                [self.number, self.one, self.other, self.gain],
                [self.said, self.shown],
                **QUIET,
            )

    def choices(self, chosen: bool, vaes: list[str] | None) -> tuple[Any, Any, Any]:
        """The VAEs and latents that there are now; the VAE in use and the last latents are what to begin with."""
        kept = [latents.title for latents in self._backend.last_latents()]
        own, host = self._library.own(), self._backend.host
        in_use = None if host is None else host.vae_in_use()
        offered = self._library.names() if own is None else [own.name, *self._library.names()]
        first = offered[:1] if in_use is None else [in_use]
        names = gr.update(choices=offered, value=[name for name in vaes or first if name in offered])
        source = gr.update(value=_LAST) if kept and not chosen else gr.update()
        return names, gr.update(choices=kept, value=kept[0] if kept else None), source

    def _switch(self, source: str) -> tuple[Any, Any, Any, Any]:
        titles = [latents.title for latents in self._backend.last_latents()]
        kept = gr.update(visible=source == _LAST, choices=titles, value=titles[0] if titles else None)
        others = (source == _PICTURE, source == _FILE, source != _PICTURE)
        return (kept, *(gr.update(visible=is_shown) for is_shown in others))

    def _likeliest_first(self, vaes: list[str] | None, family: str | None) -> Any:
        """The families to choose from: those that the chosen files may be of, then the others."""
        rows = filter(None, map(self._library.row, vaes or ()))
        likely = [family.name for row in rows if row.identity is not None for family in row.identity.candidates]
        return gr.update(choices=list(dict.fromkeys((_BY_FILE, *likely, *FAMILIES))), value=family or _BY_FILE)

    def run(
        self,
        source: str,
        kept: str | None,
        picture: Image.Image | None,
        file: Any,
        family: str | None,
        vaes: list[str] | None,
        routes: list[str] | None,
        limit: float | None,
    ) -> Iterator[tuple[str, Any, str, int | None, Any]]:
        """Start a comparison and show how far it is until it ends."""
        try:
            if limit is not None and not 0 <= limit < 1e7:
                raise InputError("The memory limit must be a number of megabytes.")
            rows = [self._library.row(name) for name in vaes or ()]
            gone = next((name for name, row in zip(vaes or (), rows, strict=True) if row is None), None)
            if gone is not None:
                raise InputError(f"{gone} is not there any more; refresh the list in Files.")
            files = [row.file for row in rows if row is not None]
            run = self._comparer.start(
                replace(self._source(source, kept, picture, file), family=FAMILIES.get(family or "")),
                files,
                routes or [],
                None if not limit else int(limit * 1e6),
            )
        except VAEGuardError as error:
            yield markup.note(str(error), "bad"), gr.update(), "", None, gr.update()
            return
        running, over = gr.update(interactive=True), gr.update(interactive=False)
        shown = -1
        while not run.finished.wait(0.25):
            gallery: Any = gr.update()
            if len(run.cells) != shown:
                shown = len(run.cells)
                gallery = _gallery(run)
            yield _status(run), gallery, _results(run), run.number, running
        yield _status(run), _gallery(run), _results(run), run.number, over

    def _source(self, source: str, kept: str | None, picture: Image.Image | None, file: Any) -> Source:
        if source == _PICTURE:
            if picture is None:
                raise InputError("Upload a picture first.")
            return Source(picture=picture_tensor(picture))
        if source == _FILE:
            if file is None:
                raise InputError("Upload a latents file first.")
            latents, metadata = load_latents(file.name)
            return Source(latents=latents[:1], space=space_in(metadata, "The latents"))
        found = next((latents for latents in self._backend.last_latents() if latents.title == kept), None)
        if found is None:
            raise InputError(
                "There are no latents of an earlier picture: generate one in the WebUI, or choose a picture here."
            )
        return Source(latents=found.latents[:1].cpu(), space=found.space)

    def _stop(self, number: int | None) -> None:
        run = self._comparer.get(number)
        if run is not None:
            run.stop.set()

    def _offer(self, number: int | None) -> tuple[Any, Any, Any]:
        run = self._comparer.get(number)
        names = [] if run is None else list(run.pictures())
        if len(names) < 2:
            return gr.update(visible=False), gr.update(), gr.update()
        return (
            gr.update(visible=True),
            gr.update(choices=names, value=names[0]),
            gr.update(choices=names, value=names[1]),
        )

    def _difference(self, number: int | None, one: str | None, other: str | None, gain: str) -> tuple[str, Any]:
        run = self._comparer.get(number)
        pictures = {} if run is None else run.pictures()
        if one not in pictures or other not in pictures or len(pictures) < 2:
            return "", gr.update(visible=False)
        try:
            found = difference(pictures[one], pictures[other], _GAINS[gain])
        except VAEGuardError as error:
            return markup.note(str(error), "warn"), gr.update(visible=False)
        said = markup.note(f"{one} and {other}: {found}.")
        if not found.largest:
            return said, gr.update(visible=False)  # a black picture shows nothing
        label = "Difference" if found.gain == 1 else f"Difference, amplified {found.gain:.3g} times"
        return said, gr.update(value=found.image, visible=True, label=label)


def _status(run: Comparison) -> str:
    if not run.finished.is_set():
        text = f"<p>{escape(run.message)} … ({len(run.cells)} of {run.total} done)</p>"
        return markup.page(text + markup.progress(run.fraction))
    if run.problem:
        return markup.note(run.problem, "warn")
    failed = sum(bool(cell.problem) for cell in run.cells)
    done = f"{len(run.cells) - failed} of {len(run.cells)} decoded"
    return markup.note(
        f"{done}; the table says why the others were not." if failed else f"{done}.", "warn" if failed else ""
    )


def _gallery(run: Comparison) -> Any:
    items = [(to_image(cell.picture), caption(cell)) for cell in run.cells if cell.picture is not None]
    if run.original is not None and items:
        items.insert(0, (to_image(run.original), ORIGINAL))
    return gr.update(value=items, visible=bool(items))


def _memory(cell: Cell) -> str:
    """Measured where that takes no time of its own, else the plan's."""
    if cell.peak_bytes is not None:
        return size_text(cell.peak_bytes)
    return f'{size_text(cell.predicted_bytes)} <span class="vg-dim">planned</span>'


def _results(run: Comparison) -> str:
    """One row per cell."""
    rows: list[list[markup.Cell]] = []
    for cell in list(run.cells):
        if cell.problem:
            problem = f'<span class="vg-bad-text">{escape(cell.problem)}</span>'
            rows.append(
                [
                    (f"<b>{escape(cell.vae)}</b>", ""),
                    (escape(cell.route), ""),
                    (problem, "vg-wide"),
                ]
            )
            continue
        remark = f'<div class="vg-dim">{markup.sentence(escape(cell.remark))}</div>' if cell.remark else ""
        how = markup.sentence(escape(cell.done_by))
        if cell.route == AUTO:
            how = f'{escape(AUTO)}: <span class="vg-dim">{escape(cell.done_by)}</span>'
        rows.append(
            [
                (f"<b>{escape(cell.vae)}</b>", ""),
                (how, ""),
                (time_text(cell.seconds), "vg-num"),
                (_memory(cell), "vg-num"),
                (markup.sentence(escape(cell.against)) + remark, "vg-wide"),
            ]
        )
    head = list(_HEAD)
    if run.original is not None:
        head[-1] = "Against the original"
    return markup.table(head, rows) if rows else ""
