"""The third section: what the chosen size needs, and how far each route goes on this device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from typing import Any, NamedTuple

import gradio as gr

from vae_lib.decode import wording
from vae_lib.device import DTYPES, dtype_name, kinds
from vae_lib.engine import Operation
from vae_lib.errors import InputError, VAEGuardError
from vae_lib.networks import STANDARD, STANDARD_VIDEO, TAESD, Architecture, video_batch
from vae_lib.planning import Outlook, Work
from vae_lib.ui import markup, memory
from vae_lib.ui.backend import Backend
from vae_lib.ui.check_section import CheckSection
from vae_lib.ui.events import QUIET
from vae_lib.ui.hints import hinted
from vae_lib.ui.library import Library

MOST_SESSIONS = 256  # pages of which is known what they asked for last


class Asked(NamedTuple):
    """What the fields hold."""

    width: float | None
    height: float | None
    frames: float | None
    dtype: str
    operation: str
    vae: str


class MemorySection:
    def __init__(self, backend: Backend, library: Library) -> None:
        self._backend, self._library = backend, library
        self._numbers = itertools.count()
        self._latest: dict[str, int] = {}  # page -> the number of what it asked for last
        self._answered: dict[str, tuple[Any, ...]] = {}
        width, height = backend.size()
        standard = list(STANDARD)
        self.reach = gr.HTML(elem_id="vg_reach")
        with gr.Row():
            self.width = gr.Number(width, label="Width", precision=0, step=64,
                                   min_width=90, elem_id="vg_width")  # fmt: skip
            self.height = gr.Number(height, label="Height", precision=0, step=64,
                                    min_width=90, elem_id="vg_height")  # fmt: skip
            self.frames = gr.Number(1, label="Frames", precision=0, min_width=90, elem_id="vg_frames")
            self.dtype = gr.Dropdown(list(DTYPES), value=dtype_name(backend.dtype()), label="Type",
                                     min_width=130, elem_id="vg_dtype")  # fmt: skip
            self.operation = gr.Dropdown(
                ["decode", "encode"], value="decode", label="Operation", min_width=130, elem_id="vg_operation"
            )
            self.vae = gr.Dropdown(
                standard, value=standard[0], label="VAE", scale=2, min_width=230, elem_id="vg_memory_vae"
            )
        self._button = gr.Button("Refresh", size="sm", elem_id="vg_memory_go")
        for component, text in (
            (self.width, "Of the picture, in pixels"),
            (self.height, "Of the picture, in pixels"),
            (self.frames, "1 is a picture; videos are for Wan's VAEs and have 4n + 1 frames, such as 81"),
            (self.dtype, "What the VAE computes in; half precision takes half the memory"),
            (self.operation, "Decode: from latents to a picture. Encode: the reverse, as img2img and inpaint do"),
            (self.vae, "VAEs of one shape need the same memory: a file of yours matters only if it is unusual"),
            (self._button, "Refresh free memory and recalculate"),
        ):  # fmt: skip
            hinted(component, text)
        self.bar = gr.HTML(elem_id="vg_bar")
        self.line = gr.HTML(elem_id="vg_plan")
        self.routes = gr.HTML(elem_id="vg_routes")
        self.plot = gr.HTML(elem_id="vg_plot")
        self.check = CheckSection(backend, self.dtype, self.operation)
        inputs = [self.width, self.height, self.frames, self.dtype, self.operation, self.vae]
        outputs = [self.reach, self.bar, self.line, self.routes, self.plot]
        for event in (self._button.click, *(component.change for component in inputs)):
            event(self.show, inputs, outputs, **QUIET).then(self.catch_up, inputs, outputs, **QUIET)
        self.inputs, self.outputs = inputs, outputs

    def choices(self) -> Any:
        """The files that can be asked for, after the standard networks."""
        return gr.update(choices=[*STANDARD, *self._library.names()])

    def show(self, page: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """What the size needs at once, then the curves; nothing once the page has asked for something else."""
        session, number = _session(page), next(self._numbers)
        _remember(self._latest, session, number)
        for shown in self._shown(Asked(*values)):
            if self._latest.get(session) != number:
                yield self._nothing_new()
                return
            yield shown
        _remember(self._answered, session, values)

    def catch_up(self, page: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """``show`` of what the fields hold by now: two events of one moment may have run in either order."""
        if self._answered.get(_session(page)) == values:
            yield self._nothing_new()
        else:
            yield from self.show(page, *values)

    def _nothing_new(self) -> tuple[Any, ...]:
        return (gr.update(),) * len(self.outputs)  # else gradio repeats what came last

    def _shown(self, asked: Asked) -> Iterator[tuple[str, str, str, str, str]]:
        """Curves take seconds the first time, and those of videos minutes: they are left out."""
        try:
            work = self._work(asked)
            if work.frames > 1:
                yield markup.page('<p class="vg-dim">Predicting the video …</p>'), "", "", "", ""
            outlook = self._outlook(work)
            bar, line = self._summary(outlook)
            prospects = memory.with_taesd(outlook, self._backend.planner())
            table = memory.routes_table(outlook, prospects, {})
        except VAEGuardError as error:
            yield "", "", markup.note(str(error), "bad"), "", ""
            return
        if work.frames > 1:
            yield "", bar, line, table, ""
            return
        predicting = markup.page('<p class="vg-dim">Predicting other sizes …</p>')
        yield predicting, bar, line, table, ""
        try:
            curves = {p.route: memory.curve(work, p.route) for p in prospects if p.least is not None}
        except VAEGuardError as error:
            yield "", bar, line, table, markup.note(str(error), "bad")
            return
        pixels = work.pixels
        on_device = {route: curve for route, curve in curves.items() if not route.elsewhere}
        plot = memory.plot(on_device, outlook.free(work.device), sqrt(pixels[0] * pixels[1]))
        reach = markup.note(memory.reach(outlook, prospects, curves))
        yield reach, bar, line, memory.routes_table(outlook, prospects, curves), plot

    def _outlook(self, work: Work) -> Outlook:
        """What a generation would do; routes that are not enabled are in the table, but are not chosen."""
        backend = self._backend
        if work.config is not None:
            work = replace(work, taesd=backend.has_taesd(work.operation))
        return Outlook(backend.planner(), work, backend.preference(work.operation))

    def _summary(self, outlook: Outlook) -> tuple[str, str]:
        """The bar and the planner's line."""
        work, plan = outlook.work, outlook.chosen
        device = self._backend.memory(work.device)
        where = "Main memory" if kinds.of(work.device).in_main_memory else "GPU memory"
        where += f" ({work.device})" if work.device.index else ""
        if plan is None:
            least = outlook.prospects[0].least if outlook.prospects else None
            need = least.peak_bytes if least is not None else 0
            return memory.bar(device, need, where), markup.note(markup.sentence(wording.expected(outlook)), "bad")
        need = plan.peak_bytes if plan.device == work.device else 0
        return memory.bar(device, need, where), markup.note(
            f"{markup.sentence(wording.expected(outlook))}; takes about {wording.time_text(plan.seconds)}."
        )

    def _work(self, asked: Asked) -> Work:
        for name, value in (("width", asked.width), ("height", asked.height)):
            if value is None or not 64 <= value <= memory.LARGEST:
                raise InputError(f"The {name} must be a number of pixels from 64 to {memory.LARGEST}.")
        frames, operation = round(asked.frames or 0), Operation(asked.operation)
        if not 1 <= frames <= memory.MOST_FRAMES:
            raise InputError(f"The number of frames must be from 1 to {memory.MOST_FRAMES}; 1 is a picture.")
        network, batch = self._network(asked.vae, frames > 1), 1
        config = None if isinstance(network, TAESD) else network
        if frames > 1:
            assert config is not None
            batch = video_batch(config, frames, operation is Operation.DECODE, asked.vae)
        scale = network.downscale
        height, width = (max(1, round(side or 0) // scale) for side in (asked.height, asked.width))
        return Work(
            config, operation, height, width, batch,
            self._backend.device(), DTYPES[asked.dtype],
            taesd=scale == TAESD.downscale, latent_channels=network.latent_channels,
            video=isinstance(network, TAESD) and network.video, spare=self._backend.spare(),
        )  # fmt: skip

    def _network(self, name: str, is_video: bool) -> Architecture | TAESD:
        """What the list calls so.

        Raises:
            CheckpointError: when there is no VAE in the file, or none of videos.
            InputError: when the list has it no longer, or one for which a video is asked has none.
        """
        if name in STANDARD:
            if is_video and name not in STANDARD_VIDEO:
                raise InputError("Only Wan's VAEs are for videos; choose one of them, or 1 frame.")
            return (STANDARD_VIDEO if is_video else STANDARD)[name]
        row = self._library.row(name)
        if row is None:
            raise InputError(f"{name} is not there any more; choose another VAE.")
        network = memory.network_of_file(row.file.path, is_video)
        return network if isinstance(network, TAESD) else network.config


def _remember(table: dict[str, Any], session: str, value: Any) -> None:
    """Of the last pages: each chooses the name of its session."""
    table.pop(session, None)
    table[session] = value
    if len(table) > MOST_SESSIONS:
        table.pop(next(iter(table)), None)


def _session(page: gr.Request) -> str:
    return str(getattr(page, "session_hash", ""))
