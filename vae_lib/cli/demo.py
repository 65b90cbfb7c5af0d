"""The demo: one photograph through the bundled VAE, by every route, with the differences to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vae_lib.checkpoints import load_vae
from vae_lib.cli.pictures import read_picture, to_image, write_picture
from vae_lib.decode import Ladder
from vae_lib.device import PeakMemory
from vae_lib.errors import InputError, PlanError
from vae_lib.files import is_gone, write_atomically
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.networks import TAESD
from vae_lib.planning import PROFILES, Planner, Route
from vae_lib.units import size_text

DATA = Path(__file__).resolve().parent.parent / "data"
AMPLIFY = {True: 100_000, False: 4}  # exact routes differ by rounding only; TAESD visibly
LABEL_HEIGHT = 20


def run_demo(options: argparse.Namespace) -> None:
    loaded = load_vae(DATA / "vae_guard_tiny.safetensors", dtype=torch.float32, kind="VAE")
    vae = loaded.exact
    assert vae is not None
    tiny = _bundled_taesd()
    picture = read_picture(options.image or DATA / "coffee.jpg", vae.downscale)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {options.output} cannot be made ({error.strerror}).") from error

    encoded = Ladder(vae).encode(picture)
    latents, scale = VAELatents(encoded.result), loaded.identity.scaling_factor or 1.0
    print(
        f"{picture.shape[3]}x{picture.shape[2]} photograph encoded to {latents.shape[3]}x{latents.shape[2]} "
        f"latents in {encoded.seconds:.1f} s ({encoded.plan.describe()})."
    )
    print(f"{'route':8} {'rows':>5} {'predicted':>10} {'measured':>10} {'time':>8} {'max difference from full':>26}")
    scaled = SamplerLatents(latents * scale)  # made here: it is no part of what a decode takes
    full: Tensor | None = None
    shown: list[tuple[str, Tensor, Tensor | None]] = [("original", picture[0], None)]
    for route in Route:
        ladder = Ladder(vae, tiny, order=(route,), planner=Planner(profiles=PROFILES))
        plans = ladder.planner.candidates(ladder.work("decode", latents.shape[2], latents.shape[3], 1), route)
        if not plans:
            print(f"{route.value:8} needs the tiny autoencoder, which is not bundled.")
            continue
        budget = options.budget or _small_budget(route, [plan.peak_bytes for plan in plans])
        ladder.planner = ladder.planner.with_free(ladder.device, budget)
        try:
            outcome = ladder.decode(latents, scaled)
            with PeakMemory(ladder.device) as peak:  # counting takes time of its own
                ladder.decode(latents, scaled)
        except PlanError as error:
            print(f"{route.value:8} {error}")
            continue
        image = outcome.result[0]
        full = image if full is None else full
        difference = (image - full).abs()
        write_picture(image, options.output / f"{route.value}.png")
        shown.append((route.value, image, difference.mul(AMPLIFY[route.exact]).sub(1)))
        print(
            f"{route.value:8} {outcome.plan.band_rows:>5} {size_text(outcome.plan.peak_bytes):>10} "
            f"{size_text(peak.bytes):>10} {outcome.seconds:>6.2f} s {difference.max().item():>26.2e}"
        )
    sheet = options.output / "sheet.png"
    _write_sheet(shown, sheet)
    mse = (full.clamp(-1, 1) - picture[0]).square().mean().item() / 4 if full is not None else 1.0
    print(f"Full decode against the photograph: {-10 * torch.log10(torch.tensor(mse)).item():.1f} dB PSNR.")
    print(f"Pictures and a sheet of them with their differences from full: {options.output}/, {sheet}")


def _small_budget(route: Route, peaks: list[int]) -> int:
    """What full needs for full and cpu; for the others little more than the least that would do."""
    if route in (Route.FULL, Route.CPU):
        return max(peaks)
    return int(min(peaks) * {Route.TILED: 1.2, Route.OFFLOAD: 3, Route.TAESD: 2}[route])


def _bundled_taesd() -> TAESD | None:
    path = DATA / "vae_guard_taesd.safetensors"
    if is_gone(path):
        return None
    return load_vae(path, dtype=torch.float32, kind="TAESD").tiny


def _write_sheet(shown: list[tuple[str, Tensor, Tensor | None]], path: Path) -> None:
    """Pictures in the upper row, their amplified differences from full below."""
    height, width = shown[0][1].shape[1:]
    cell = height + LABEL_HEIGHT
    sheet = Image.new("RGB", (width * len(shown), 2 * cell), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (name, picture, difference) in enumerate(shown):
        left = column * width
        sheet.paste(to_image(picture), (left, LABEL_HEIGHT))
        draw.text((left + 4, 4), name, fill="black")
        if difference is not None:
            sheet.paste(to_image(difference), (left, cell + LABEL_HEIGHT))
            times = AMPLIFY[name != Route.TAESD.value]
            draw.text((left + 4, cell + 4), f"{name}: difference from full x {times}", fill="black")
    write_atomically(path, lambda aside: sheet.save(aside, "PNG"))
