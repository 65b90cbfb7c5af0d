"""What each command does."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vae_lib.checkpoints import (
    FAMILIES,
    Identity,
    identify,
    load_latents,
    load_vae,
    read_header,
    save_safetensors,
)
from vae_lib.checkpoints.identify import config_of, find_vae, vae_shapes
from vae_lib.cli.pictures import read_picture, write_picture
from vae_lib.decode import (
    DTYPES,
    Compute,
    Ladder,
    Operation,
    Outcome,
    PeakMemory,
    Plan,
    Rates,
    Route,
    Work,
    candidates,
    choose,
    choose_device,
    dtype_name,
    free_bytes,
    rates_for,
    trusted_rates,
    usual_dtype,
    wording,
)
from vae_lib.errors import CheckpointError, InputError, PlanError, printable
from vae_lib.files import check_target
from vae_lib.networks import TAESD, AutoencoderKL
from vae_lib.units import size_text


def run_decode(options: argparse.Namespace) -> None:
    if options.output is None and options.tensor is None:
        raise InputError("Nothing to write: give -o OUT.png, or --tensor OUT.safetensors.")
    for path in (options.output, options.tensor):
        _check_writable(path)
    latents, metadata = load_latents(options.latents)
    job = _Job(options)
    scale, shift = job.factors(latents.shape[1], metadata)
    unscaled = latents.to(torch.float32) / scale + shift
    with job.ladder() as ladder, PeakMemory(ladder.device) as peak:
        outcome = ladder.decode(unscaled, latents.to(torch.float32))
    image = outcome.result.float().cpu()
    if options.tensor is not None:
        save_safetensors({"image": image.contiguous()}, options.tensor, {"route": outcome.plan.route.value})
    written = (
        [] if options.output is None else _write_pictures(image, options.output, metadata.get("parameters"))
    )
    job.report(outcome, peak.bytes, [*written, *filter(None, [options.tensor])])


def run_encode(options: argparse.Namespace) -> None:
    _check_writable(options.output)
    job = _Job(options)
    picture = read_picture(options.image, job.downscale)
    scale, shift = job.factors(job.latent_channels, {})
    with job.ladder() as ladder, PeakMemory(ladder.device) as peak:
        outcome = ladder.encode(picture)
    latents = outcome.result.float().cpu()
    if not outcome.scaled:
        latents = (latents - shift) * scale
    factors = {"scaling_factor": repr(scale), "shift_factor": repr(shift)}
    save_safetensors({"latents": latents.contiguous()}, options.output, factors)
    job.report(outcome, peak.bytes, [options.output])


def run_inspect(options: argparse.Namespace) -> None:
    identity = identify(options.file)
    described = {
        "file": str(identity.path),
        "kind": identity.kind,
        "layout": identity.layout,
        "family": identity.family_name,
        "certainty": identity.certainty,
        "explanation": identity.explanation,
        "latent_channels": identity.latent_channels,
        "scaling_factor": identity.scaling_factor,
        "shift_factor": identity.shift_factor,
        "dtype": identity.dtype,
        "parameters": identity.parameters,
        "file_size": identity.file_size,
        "sha256": identity.sha256,
    }
    if options.json:
        print(json.dumps(described))
        return
    described["file_size"] = f"{size_text(identity.file_size)} ({identity.file_size} bytes)"
    described["parameters"] = f"{identity.parameters:,}"
    for name, value in described.items():
        print(f"{name.replace('_', ' '):16} {'unknown' if value is None else printable(str(value))}")


def run_plan(options: argparse.Namespace) -> None:
    header = read_header(options.vae)
    found = find_vae(header)
    if found.is_taesd:
        raise CheckpointError(
            f"{options.vae.name} is a TAESD, the tiny autoencoder; a full VAE is wanted here."
        )
    config = config_of(vae_shapes(header, found), options.vae.name)
    device = torch.device(options.device) if options.device else choose_device()
    dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(device)
    if options.free is None:
        options.free = free_bytes(choose_device(device.type))
    work = Work(
        config, Operation.ENCODE if options.encode else Operation.DECODE, options.height // config.downscale,
        options.width // config.downscale, options.batch, device, dtype,
        taesd=options.taesd, latent_channels=config.latent_channels,
    )  # fmt: skip
    order = [route for route in Route if route is not Route.TAESD or options.taesd]
    if device.type == "cpu":
        order.remove(Route.CPU)
    try:
        chosen, problem = choose(work, options.free, order=order), None
        reason = wording.planned(chosen)
    except PlanError as error:
        chosen, reason = None, str(error)
        problem = reason
    rows = [_plan_row(work, route, options.free, chosen) for route in order]
    if options.json:
        print(json.dumps({
            "device": device.type, "dtype": dtype_name(dtype), "free_bytes": options.free, "routes": rows,
            "chosen": None if chosen is None else chosen.route.value, "reason": reason,
        }))  # fmt: skip
    else:
        _print_plan(work, rows, options.free, reason)
    if problem is not None:
        raise PlanError(problem)


def run_ui(options: argparse.Namespace) -> None:
    try:
        from vae_lib.ui.app import launch
    except ImportError as error:
        raise InputError(
            f"The tab needs the package {error.name or 'gradio'}, which is not installed: pip install gradio==3.41.2."
        ) from error
    folder = options.folder or Path(__file__).resolve().parent.parent / "data"
    launch(folder, port=options.port, open_browser=not options.no_browser)


class _Job:
    """The VAE, the device and the route that the options of decode and encode ask for."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = choose_device("cpu" if options.route == "cpu" else options.device)
        self.dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(self.device)
        self.vae: AutoencoderKL | None = None
        self.taesd: TAESD | None = None
        self.identity: Identity | None = None
        if options.route == "taesd" and options.taesd is None:
            raise InputError("The route taesd needs the tiny autoencoder's file: give it with --taesd FILE.")
        if options.route != "taesd":
            if options.vae is None:
                raise InputError("A VAE is needed: give its file with --vae FILE.")
            loaded = load_vae(options.vae, dtype=self.dtype, device=self.device, kind="AutoencoderKL")
            assert isinstance(loaded.model, AutoencoderKL)
            self.vae, self.identity = loaded.model, loaded.identity
        if options.taesd is not None and options.route in ("auto", "taesd"):
            tiny = load_vae(options.taesd, dtype=self.dtype, device=self.device, kind="TAESD").model
            assert isinstance(tiny, TAESD)
            self.taesd = tiny

    @property
    def latent_channels(self) -> int:
        network = self.vae or self.taesd
        assert network is not None
        return network.latent_channels

    @property
    def downscale(self) -> int:
        return 8 if self.vae is None else self.vae.downscale

    def factors(self, channels: int, metadata: dict[str, str]) -> tuple[float, float]:
        """Scaling and shift factor: as given, else the latents file's own, else the VAE's family's."""
        scale, shift, told = None, None, ""
        if self.identity is not None:
            scale, shift = self.identity.scaling_factor, self.identity.shift_factor
        with suppress(KeyError, ValueError):
            scale, shift = float(metadata["scaling_factor"]), float(metadata["shift_factor"])
        if scale is None:
            guess = self.identity.guess if self.identity is not None else None
            family = guess or FAMILIES["SD1" if channels == 4 else "SD3"]
            scale, shift = family.scaling_factor, family.shift_factor
            told = f"{family.name}'s scaling factor {scale} and shift factor {shift} are assumed"
        if self.options.scaling_factor is not None:
            scale, told = self.options.scaling_factor, ""
        if self.options.shift_factor is not None:
            shift = self.options.shift_factor
        if told and self.vae is not None:
            assert self.identity is not None
            print(
                f"vae_lib: the file does not tell whether this is a VAE of {self.identity.family_name}; {told}. "
                "If colours or contrast look wrong, give --scaling-factor and --shift-factor.",
                file=sys.stderr,
            )
        return scale, shift or 0.0

    @contextmanager
    def ladder(self) -> Iterator[Ladder]:
        """The ladder with a progress bar, which shows after a second and leaves nothing behind."""
        options = self.options
        order = tuple(Route) if options.route == "auto" else (Route(options.route),)
        if self.device.type == "cpu" and options.route == "auto":
            order = tuple(route for route in order if route is not Route.CPU)
        budget: Callable[[torch.device], int] = free_bytes
        if options.budget is not None:
            budget = lambda device: options.budget if device == self.device else free_bytes(device)  # noqa: E731
        bar = tqdm(delay=1, leave=False, unit="band", file=sys.stderr, disable=None)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            yield Ladder(
                self.vae,
                self.taesd,
                self.device,
                self.dtype,
                order,
                budget,
                wrap=options.seamless,
                rates=self._rates(),
                progress=progress,
            )
        finally:
            bar.close()

    def _rates(self) -> Rates | None:
        compute = Compute(self.device, self.dtype)
        if self.vae is None:
            return rates_for(self.device, self.dtype)
        return trusted_rates(self.vae, compute, lambda text: print(f"vae_lib: {text}", file=sys.stderr))

    def report(self, outcome: Outcome, peak_bytes: int, written: Sequence[Path]) -> None:
        described: dict[str, Any] = {
            "route": outcome.plan.route.value,
            "bands": outcome.plan.bands,
            "band_rows": outcome.plan.band_rows,
            "predicted_peak_bytes": outcome.plan.peak_bytes,
            "peak_bytes": peak_bytes,
            "seconds": round(outcome.seconds, 3),
            "reason": wording.line(outcome),
            "dtype": dtype_name(outcome.plan.dtype),
            "device": outcome.plan.device.type,
            "files": [str(path) for path in written],
        }
        if self.options.json:
            print(json.dumps(described))
            return
        files = ", ".join(described["files"])
        print(f"{files}: {wording.line(outcome)}; took {outcome.seconds:.1f} s and {size_text(peak_bytes)}.")
        if not outcome.plan.route.exact:
            print(
                "This is TAESD's approximation; decode again with --route auto and more memory for the exact one."
            )


def _check_writable(path: Path | None) -> None:
    """Refuse a bad output path before the work rather than after it."""
    if path is not None:
        check_target(path)


def _write_pictures(image: Tensor, path: Path, parameters: str | None) -> list[Path]:
    paths = [path]
    if len(image) > 1:
        paths = [path.with_stem(f"{path.stem}-{index}") for index in range(1, len(image) + 1)]
    for item, target in zip(image, paths, strict=True):
        write_picture(item, target, parameters)
    return paths


def _plan_row(work: Work, route: Route, free: int, chosen: Plan | None) -> dict[str, Any]:
    """The route's best plan that fits, else its smallest."""
    plans = candidates(work, route)
    if chosen is not None and chosen.route is route:
        plan = chosen
    else:
        limit = free if route is not Route.CPU else 1 << 62
        fitting = (plan for plan in plans if plan.peak_bytes <= limit)
        plan = next(fitting, None) or min(plans, key=lambda candidate: candidate.peak_bytes)
    least = min(candidate.peak_bytes for candidate in plans)
    row = {key: getattr(plan, key) for key in ("peak_bytes", "seconds", "band_rows", "bands")}
    return {
        "route": route.value, "fits": plan.device != work.device or plan.peak_bytes <= free, **row,
        "least_bytes": least, "exact": route.exact, "chosen": chosen is not None and chosen.route is route,
        "tiling": None if plan.tiling is None else dataclasses.asdict(plan.tiling),
    }  # fmt: skip


def _print_plan(work: Work, rows: list[dict[str, Any]], free: int, reason: str) -> None:
    height, width = work.pixels
    print(
        f"{work.operation} {width}x{height}, {dtype_name(work.dtype)}, {work.device.type}, {size_text(free)} free"
    )
    print(f"  {'route':8} {'needs':>9} {'at least':>9} {'about':>9} {'rows':>6}  fits  picture")
    for row in rows:
        print(
            f"{'>' if row['chosen'] else ' '} {row['route']:8} {size_text(row['peak_bytes']):>9} "
            f"{size_text(row['least_bytes']):>9} {row['seconds']:>7.1f} s {row['band_rows']:>6}  "
            f"{'yes ' if row['fits'] else 'no  '}  {'exact' if row['exact'] else 'approximate'}"
        )
    print(reason)
    print("Weights are taken to be loaded already and are not counted.")
