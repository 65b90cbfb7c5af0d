"""Decoding the same thing with several VAEs by several routes."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lib.checkpoints import Family, LatentSpace, LoadedVAE, Meeting, OpenSpace, load_vae
from vae_lib.checkpoints.evidence import join
from vae_lib.decode import Ladder, wording
from vae_lib.device import PeakMemory
from vae_lib.engine import Operation
from vae_lib.errors import Cancelled, InputError, VAEGuardError
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.planning import DEFAULT_ORDER, Route
from vae_lib.ui.backend import Backend, VAEFile

AUTO = "Automatic"
ORIGINAL = "Original"
WHOSE = "Whose latents"

Given = tuple[VAELatents | None, SamplerLatents | None]  # what a VAE takes, or TAESD

_numbers = count(1)


@dataclass(frozen=True)
class Source:
    """What is decoded: a picture (3, H, W) in [-1, 1], or latents (1, C, h, w) and their space, if it is known.

    ``family`` is the user's word on whose latents they are.
    """

    picture: Tensor | None = None
    latents: Tensor | None = None
    space: LatentSpace | None = None
    family: Family | None = None


@dataclass(frozen=True)
class Cell:
    """One VAE by one route. ``picture`` (3, H, W) in [0, 1] is there when it worked, ``problem`` when it did not.

    ``against`` says how it differs from the original picture, or without one from the first cell's.
    """

    vae: str
    route: str
    picture: Tensor | None = None
    done_by: str = ""
    seconds: float = 0.0
    peak_bytes: int | None = None
    predicted_bytes: int = 0
    against: str = ""
    remark: str = ""
    problem: str = ""

    @property
    def title(self) -> str:
        return f"{self.vae}, {self.route}"


@dataclass
class Comparison:
    """A comparison that runs in a thread of its own; everything here may be read meanwhile."""

    number: int
    total: int
    original: Tensor | None
    cells: list[Cell] = field(default_factory=list)
    message: str = "Waiting for another comparison to end."
    fraction: float = 0.0
    problem: str = ""
    finished: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def pictures(self) -> dict[str, Tensor]:
        """All pictures (3, H, W) in [0, 1] by their titles."""
        found = {} if self.original is None else {ORIGINAL: self.original}
        return found | {cell.title: cell.picture for cell in self.cells if cell.picture is not None}


class Comparer:
    """Runs comparisons one after the other, and keeps the last few for the difference view."""

    KEPT = 4

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._turn = threading.Lock()
        self._kept: dict[int, Comparison] = {}

    def get(self, number: int | None) -> Comparison | None:
        return None if number is None else self._kept.get(number)

    def start(
        self, source: Source, files: Sequence[VAEFile], routes: Sequence[str], limit_bytes: int | None = None
    ) -> Comparison:
        """Begin; ``routes`` are ``AUTO`` or titles of routes, ``limit_bytes`` lowers what a decode may take.

        Raises:
            InputError: when nothing was chosen.
        """
        if not files:
            raise InputError("Choose at least one VAE to compare.")
        if not routes:
            raise InputError("Choose at least one route.")
        original = None if source.picture is None else _unit(source.picture)
        run = Comparison(next(_numbers), len(files) * len(routes), original)
        self._kept[run.number] = run
        for old in sorted(self._kept)[: -self.KEPT]:
            if self._kept[old].finished.is_set():
                del self._kept[old]
        arguments = (run, source, list(files), list(routes), limit_bytes)
        threading.Thread(target=self._run, args=arguments, name="vae-guard-compare", daemon=True).start()
        return run

    def _run(self, run: Comparison, source: Source, files: list[VAEFile], routes: list[str], limit: int | None) -> None:
        try:
            with self._turn, self._backend.computing(), torch.no_grad():
                for file in files:
                    self._with_vae(run, source, file, routes, limit)
        except Cancelled:
            run.problem = "Stopped; what was done until then is shown."
        except VAEGuardError as error:
            run.problem = str(error)
        except Exception as error:  # the tab must say something whatever happens
            run.problem = f"The comparison ended with an unexpected error ({type(error).__name__}: {error})."
            raise
        finally:
            run.message, run.fraction = "", 1.0
            run.finished.set()

    def _with_vae(self, run: Comparison, source: Source, file: VAEFile, routes: list[str], limit: int | None) -> None:
        if run.stop.is_set():
            raise Cancelled("Stopped.")
        run.message = f"Loading {file.name}"
        latents: Given | None = None
        loaded: LoadedVAE | None = None
        problem, remark = "", ""
        try:
            loaded = load_vae(file.path)
            if loaded.tiny is not None:
                run.total -= len(routes) - 1
                routes = [Route.TAESD.caption]
            ladder = self._ladder(run, loaded, limit)
            if source.picture is not None:
                run.message = f"Encoding with {file.name}"
                latents = self._encode(ladder, source.picture)
            elif source.latents is not None:
                latents, remark = _given(source, loaded)
        except Cancelled:
            raise
        except VAEGuardError as error:
            problem = str(error)
        for route in routes:
            if run.stop.is_set():
                raise Cancelled("Stopped.")
            cell = Cell(file.name, route, problem=problem, remark=remark)
            if not problem and loaded is not None and latents is not None:
                run.message = f"Decoding with {file.name}, {route}"
                try:
                    cell = self._decode(cell, self._ladder(run, loaded, limit), latents)
                except Cancelled:
                    raise
                except VAEGuardError as error:
                    cell = replace(cell, problem=str(error))
            run.cells.append(replace(cell, against=_against(run, cell)))
            run.fraction = len(run.cells) / run.total

    def _ladder(self, run: Comparison, loaded: LoadedVAE, limit: int | None) -> Ladder:
        planner = self._backend.planner()

        def progress(done: int, total: int) -> None:
            run.fraction = (len(run.cells) + done / max(total, 1)) / run.total

        return Ladder(
            loaded.exact, loaded.tiny, device=self._backend.device(), dtype=self._backend.dtype(),
            planner=planner if limit is None else planner.within(limit), spare=self._backend.spare(),
            output_device=torch.device("cpu"), progress=progress, cancelled=run.stop.is_set,
        )  # fmt: skip

    def _encode(self, ladder: Ladder, picture: Tensor) -> Given:
        model = ladder.vae or ladder.taesd
        half = None if model is None else model.encoder
        if half is None:
            raise InputError("This file holds only a decoder, so it cannot encode the picture; compare it on latents.")
        ladder.order = tuple(route for route in DEFAULT_ORDER if route.exact == (ladder.vae is not None))
        if ladder.vae is not None and ladder.vae.config.in_channels == len(picture) + 1:  # nothing of it is transparent
            picture = torch.cat([picture, torch.ones_like(picture[:1])])
        outcome = ladder.encode(picture[None])
        latents = outcome.result
        return (None, SamplerLatents(latents)) if outcome.scaled else (VAELatents(latents), None)

    def _decode(self, cell: Cell, ladder: Ladder, latents: Given) -> Cell:
        route = next((route for route in Route if route.caption == cell.route), None)
        ladder.order = self._backend.preference(Operation.DECODE) if route is None else (route,)
        with PeakMemory(ladder.device, counts=False) as peak:
            outcome = ladder.decode(*latents)
        return replace(
            cell,
            picture=_unit(outcome.result[0, :3].float().cpu()),  # without what is transparent
            done_by=outcome.plan.describe(),
            seconds=outcome.seconds,
            peak_bytes=peak.known,
            predicted_bytes=outcome.plan.peak_bytes,
            remark=" ".join(filter(None, (cell.remark, "; ".join(map(wording.problem, outcome.attempts))))),
        )


def _against(run: Comparison, cell: Cell) -> str:
    if cell.picture is None:
        return ""
    first = next(iter(run.pictures().values()), None)
    if first is None:
        return "this is the first"
    return str(difference(first, cell.picture)) if first.shape == cell.picture.shape else "another size"


def _given(source: Source, loaded: LoadedVAE) -> tuple[Given, str]:
    """The latents as this file takes them, and what there is to say about that."""
    assert source.latents is not None
    latents = SamplerLatents(source.latents.float())
    meeting = Meeting(loaded if loaded.exact else None, loaded if loaded.tiny else None, source.family)
    try:
        space = meeting.space_of(latents, source.space)
        if loaded.tiny is not None:
            return (None, meeting.for_taesd(latents, space)), ""
    except OpenSpace as error:
        names = join([family.name for family in error.candidates], "or")
        raise InputError(f"{error} If you know, choose it in '{WHOSE}': {names}." if names else str(error)) from error
    assert space is not None
    return (space.for_vae(latents), None), "" if source.space is not None else meeting.guessed or ""


def picture_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1], cropped to multiples of 8 pixels.

    Raises:
        InputError: when the picture is smaller than that.
    """
    width, height = (side - side % 8 for side in image.size)
    if not width or not height:
        raise InputError(f"The picture has only {image.width} x {image.height} pixels; 8 x 8 are needed.")
    pixels = np.asarray(image.convert("RGB").crop((0, 0, width, height)), dtype=np.float32)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 127.5 - 1


def to_image(picture: Tensor) -> Image.Image:
    """An image of (3, H, W) in [0, 1]."""
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Difference:
    """How two pictures in [0, 1] differ; ``psnr`` in dB, infinite when they do not."""

    image: Image.Image
    gain: float
    largest: float
    psnr: float

    def __str__(self) -> str:
        if not self.largest:
            return "identical, to the last bit"
        return f"largest difference {255 * self.largest:.3g} of 255, PSNR {self.psnr:.1f} dB"


def difference(one: Tensor, other: Tensor, gain: float | None = None) -> Difference:
    """|one - other|, amplified so that the largest is white (``gain`` None) or by a factor.

    Raises:
        InputError: when the pictures are not of one size.
    """
    if one.shape != other.shape:
        raise InputError(
            f"These pictures have different sizes: {one.shape[2]} x {one.shape[1]} and "
            f"{other.shape[2]} x {other.shape[1]}."
        )
    delta = (one - other).abs()
    largest, mean_square = float(delta.max()), float((delta.double() ** 2).mean())
    factor = gain if gain is not None else (1 / largest if largest else 1.0)
    psnr = -10 * math.log10(mean_square) if mean_square else math.inf
    return Difference(to_image((delta * factor).clamp(0, 1)), factor, largest, psnr)


def _unit(picture: Tensor) -> Tensor:
    """From [-1, 1], perhaps a little beyond, to [0, 1]."""
    return ((picture + 1) / 2).clamp(0, 1)


def caption(cell: Cell) -> str:
    """A short title."""
    return f"{Path(cell.vae).stem}, {cell.route}"
