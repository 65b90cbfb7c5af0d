"""The commands that look at files: inspect, plan; and the one that starts the tab."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from vae_lib.checkpoints import describe, identify, read_header
from vae_lib.decode import wording
from vae_lib.device import DTYPES, choose_device, dtype_name, free_memory, usual_dtype
from vae_lib.engine import Operation
from vae_lib.errors import CheckpointError, InputError, printable
from vae_lib.networks import TAESD, video_batch
from vae_lib.planning import DEFAULT_ORDER, PROFILES, Outlook, Plan, Planner, Preference, Prospect, Work
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
        "pixels_a_latent": identity.downscale,
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
    if identity.scaling_factor is None and identity.family is not None:
        described |= dict.fromkeys(("scaling_factor", "shift_factor"), "one for each channel")
    for name, value in described.items():
        print(f"{name.replace('_', ' '):16} {'unknown' if value is None else printable(str(value))}")


def run_plan(options: argparse.Namespace) -> None:
    described = describe(read_header(options.vae))
    network = described.exact
    if network is None:
        raise CheckpointError(f"{options.vae.name} is a TAESD, the tiny autoencoder; a full VAE is wanted here.")
    config = network.config
    batch = options.batch
    if options.frames is not None:
        network = described.for_video().exact or network
        config = network.config
        batch = video_batch(config, options.frames, not options.encode, options.vae.name)
    _check_size(options, network.downscale * (1 if described.packing is None else described.packing.patch))
    device = torch.device(options.device) if options.device else choose_device()
    dtype = DTYPES[options.dtype] if options.dtype else usual_dtype(device)
    work = Work(
        config, Operation.ENCODE if options.encode else Operation.DECODE, options.height // config.downscale,
        options.width // config.downscale, batch, device, dtype,
        taesd=options.taesd and config.downscale == TAESD.downscale,
        latent_channels=config.latent_channels,
    )  # fmt: skip
    free = free_memory(choose_device(str(device))) if options.free is None else options.free
    planner = Planner(free_memory, PROFILES).with_free(device, free)
    threshold = options.threshold
    outlook = Outlook(planner, work, DEFAULT_ORDER if threshold is None else Preference.above(threshold))
    if options.json:
        print(json.dumps({
            "device": str(device), "dtype": dtype_name(dtype), "free_bytes": outlook.free(device),
            "routes": [_plan_row(outlook, prospect) for prospect in outlook.prospects],
            "chosen": None if outlook.chosen is None else outlook.chosen.route.value,
            "reason": wording.expected(outlook),
        }))  # fmt: skip
    else:
        _print_plan(outlook)
    if outlook.problem is not None:
        raise outlook.problem


def _check_size(options: argparse.Namespace, multiple: int) -> None:
    """Refuse sizes that no latents have: each is ``multiple`` pixels on a side."""
    width, height = options.width, options.height
    if width % multiple or height % multiple:
        smaller = [max(1, side // multiple) * multiple for side in (width, height)]
        larger = [-(-side // multiple) * multiple for side in (width, height)]
        sizes = dict.fromkeys(f"{across}x{down}" for across, down in (smaller, larger))
        raise InputError(
            f"{options.vae.name} makes no pictures of {width}x{height}, as its latents are {multiple} pixels each; the "
            f"nearest size is {' or '.join(sizes)}."
        )


def run_ui(options: argparse.Namespace) -> None:
    from vae_lib.ui import needs

    needs.check()
    try:
        from vae_lib.ui.app import launch
    except Exception as error:  # versions that do not fit fail in many ways
        raise needs.import_problem(error) from error
    folder = options.folder or Path(__file__).resolve().parent.parent / "data"
    launch(folder, port=options.port, open_browser=not options.no_browser)


def _plan_row(outlook: Outlook, prospect: Prospect) -> dict[str, Any]:
    """The route's plan for now, else its smallest; "fits" is None where nobody knows what is free."""
    route, chosen = prospect.route, outlook.chosen
    plan, least = prospect.now or prospect.least, prospect.least
    row = {key: getattr(plan, key, None) for key in ("peak_bytes", "seconds", "band_rows", "bands")}
    free = outlook.free(outlook.work.device if plan is None else plan.device)
    return {
        "route": route.value, "fits": _fits(plan, free), **row,
        "least_bytes": None if least is None else least.peak_bytes, "exact": route.exact,
        "chosen": chosen is not None and chosen.route is route,
        "tiling": None if plan is None or plan.tiling is None else dataclasses.asdict(plan.tiling),
    }  # fmt: skip


def _fits(plan: Plan | None, free: int | None) -> bool | None:
    if plan is None:
        return False
    return None if free is None else plan.fits(free)


_FITS = {True: "yes", False: "no", None: "?"}


def _print_plan(outlook: Outlook) -> None:
    work, free = outlook.work, outlook.free(outlook.work.device)
    height, width = work.pixels
    there = "free memory not known" if free is None else f"{size_text(free)} free"
    video = f"{work.frames} frames of " if work.frames > 1 else ""
    print(f"{work.operation.value} {video}{width}x{height}, {dtype_name(work.dtype)}, {work.device}, {there}")
    print(f"  {'route':8} {'needs':>9} {'at least':>9} {'about':>9} {'rows':>6}  fits  picture")
    for row in (_plan_row(outlook, prospect) for prospect in outlook.prospects):
        if row["peak_bytes"] is None:
            cannot = "has no plan for this" if not row["exact"] else "gave a wrong picture when this device was checked"
            print(f"  {row['route']:8} {cannot}")
            continue
        print(
            f"{'>' if row['chosen'] else ' '} {row['route']:8} {size_text(row['peak_bytes']):>9} "
            f"{size_text(row['least_bytes']):>9} {row['seconds']:>7.1f} s {row['band_rows']:>6}  "
            f"{_FITS[row['fits']]:4}  {'exact' if row['exact'] else 'approximate'}"
        )
    print(wording.expected(outlook))
    print("Weights are taken to be loaded already and are not counted.")
