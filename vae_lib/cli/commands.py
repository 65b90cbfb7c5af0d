"""The commands that look at files: inspect, plan; and the one that starts the tab."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from vae_lib.checkpoints import describe, identify, read_header
from vae_lib.decode import (
    DTYPES,
    UNLIMITED,
    Operation,
    Plan,
    Route,
    Work,
    candidates,
    choose,
    choose_device,
    devices,
    dtype_name,
    free_memory,
    usual_dtype,
    wording,
)
from vae_lib.errors import CheckpointError, PlanError, printable
from vae_lib.networks import AutoencoderKL
from vae_lib.units import size_text


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
        "sampler_channels": identity.family.sampler_channels if identity.family else None,
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
    network = describe(read_header(options.vae)).network
    if not isinstance(network, AutoencoderKL):
        raise CheckpointError(
            f"{options.vae.name} is a TAESD, the tiny autoencoder; a full VAE is wanted here."
        )
    config = network.config
    device = torch.device(options.device) if options.device else choose_device()
    dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(device)
    free: int | None = options.free
    if free is None:
        free = free_memory(choose_device(device.type))
    work = Work(
        config, Operation.ENCODE if options.encode else Operation.DECODE, options.height // config.downscale,
        options.width // config.downscale, options.batch, device, dtype,
        taesd=options.taesd, latent_channels=config.latent_channels,
    )  # fmt: skip
    order = [route for route in Route if route is not Route.TAESD or options.taesd]
    if device.type == "cpu":
        order.remove(Route.CPU)
    try:
        chosen, problem = choose(work, free, order=order), None
        reason = wording.planned(chosen)
    except PlanError as error:
        chosen, reason = None, str(error)
        problem = reason
    rows = [_plan_row(work, route, free, chosen) for route in order]
    if options.json:
        print(json.dumps({
            "device": device.type, "dtype": dtype_name(dtype), "free_bytes": free, "routes": rows,
            "chosen": None if chosen is None else chosen.route.value, "reason": reason,
        }))  # fmt: skip
    else:
        _print_plan(work, rows, free, reason)
    if problem is not None:
        raise PlanError(problem)


def run_ui(options: argparse.Namespace) -> None:
    from vae_lib.ui import needs

    needs.check()
    try:
        from vae_lib.ui.app import launch
    except Exception as error:  # versions that do not fit fail in many ways
        raise needs.import_problem(error) from error
    folder = options.folder or Path(__file__).resolve().parent.parent / "data"
    launch(folder, port=options.port, open_browser=not options.no_browser)


def _plan_row(work: Work, route: Route, free: int | None, chosen: Plan | None) -> dict[str, Any]:
    """The route's best plan that fits, else its smallest; "fits" is None where nobody knows what is free."""
    plans = candidates(work, route)
    if chosen is not None and chosen.route is route:
        plan = chosen
    else:
        promise = devices.FIRST_PROMISE if free is None else free
        limit = UNLIMITED if route is Route.CPU else promise
        fitting = (plan for plan in plans if plan.peak_bytes <= limit)
        plan = next(fitting, None) or min(plans, key=lambda candidate: candidate.peak_bytes)
    least = min(candidate.peak_bytes for candidate in plans)
    fits = True if plan.device != work.device else None if free is None else plan.peak_bytes <= free
    row = {key: getattr(plan, key) for key in ("peak_bytes", "seconds", "band_rows", "bands")}
    return {
        "route": route.value, "fits": fits, **row,
        "least_bytes": least, "exact": route.exact, "chosen": chosen is not None and chosen.route is route,
        "tiling": None if plan.tiling is None else dataclasses.asdict(plan.tiling),
    }  # fmt: skip


_FITS = {True: "yes", False: "no", None: "?"}


def _print_plan(work: Work, rows: list[dict[str, Any]], free: int | None, reason: str) -> None:
    height, width = work.pixels
    there = "free memory not known" if free is None else f"{size_text(free)} free"
    print(f"{work.operation.value} {width}x{height}, {dtype_name(work.dtype)}, {work.device.type}, {there}")
    print(f"  {'route':8} {'needs':>9} {'at least':>9} {'about':>9} {'rows':>6}  fits  picture")
    for row in rows:
        print(
            f"{'>' if row['chosen'] else ' '} {row['route']:8} {size_text(row['peak_bytes']):>9} "
            f"{size_text(row['least_bytes']):>9} {row['seconds']:>7.1f} s {row['band_rows']:>6}  "
            f"{_FITS[row['fits']]:4}  {'exact' if row['exact'] else 'approximate'}"
        )
    print(reason)
    print("Weights are taken to be loaded already and are not counted.")
