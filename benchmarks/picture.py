"""The README's picture: one photograph decoded in full, by diffusers' tiles and by ours, and what became of it.

    python -m benchmarks.picture        # writes docs/comparison-light.png and docs/comparison-dark.png

The photograph and the VAE are those that come with the package; diffusers is used as it is published, with its
defaults. Both decoders have the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks import peers
from vae_lib.checkpoints import load_vae
from vae_lib.cli.demo import DATA
from vae_lib.cli.pictures import to_image
from vae_lib.decode import Ladder
from vae_lib.device import PeakMemory
from vae_lib.latents import VAELatents
from vae_lib.networks import AutoencoderKL
from vae_lib.planning import Planner, Route
from vae_lib.ui.compare import picture_tensor
from vae_lib.units import size_text

SIZE = (1152, 768)
GAIN = 8
THEMES = {"light": ("#ffffff", "#1f2328", "#59636e"), "dark": ("#0d1117", "#f0f6fc", "#9198a1")}
DOCS = Path(__file__).resolve().parents[1] / "docs"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shown:
    """One decode: its picture (3, H, W) in [-1, 1], CPU seconds, and bytes at the peak beside the weights."""

    title: str
    picture: Tensor
    seconds: float
    peak: int


def decoded(title: str, decode: Callable[[], Tensor]) -> Shown:
    begin = time.process_time()
    picture = decode()[0]
    seconds = time.process_time() - begin
    with PeakMemory(CPU) as peak:  # counting takes time of its own
        decode()
    return Shown(title, picture, seconds, peak.bytes)


@torch.no_grad()
def all_ways() -> list[Shown]:
    vae = load_vae(DATA / "vae_guard_tiny.safetensors", dtype=torch.float32, kind="VAE").model
    assert isinstance(vae, AutoencoderKL)
    photograph = Image.open(DATA / "coffee.jpg").convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    latents = Ladder(vae).encode(picture_tensor(photograph)[None]).result
    ours = Ladder(vae, order=(Route.TILED,))
    plans = ours.planner.candidates(ours.work("decode", latents.shape[2], latents.shape[3], 1), Route.TILED)
    least = min(plan.peak_bytes for plan in plans)
    ours.planner = Planner(lambda device: least)
    full, tiled = (peers.diffusers(vae, CPU, torch.float32, mode) for mode in ("full", "tiled"))
    return [
        decoded("In full, by diffusers", lambda: full(latents)),
        decoded("In tiles, by diffusers", lambda: tiled(latents)),
        decoded("In tiles, by VAE Guard", lambda: ours.decode(VAELatents(latents)).result),
    ]


def draw(ways: list[Shown], theme: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    background, ink, dim = THEMES[theme]
    reference = ways[0]
    figure, axes = pyplot.subplots(2, 3, figsize=(12.6, 6.55), facecolor=background)
    for column, way in enumerate(ways):
        difference = (way.picture.clamp(-1, 1) - reference.picture.clamp(-1, 1)).abs()  # of 2
        mean, most = (127.5 * float(value) for value in (difference.mean(), difference.max()))
        top, below = axes[0][column], axes[1][column]
        top.imshow(to_image(way.picture))
        top.set_title(way.title, color=ink, fontsize=15, fontweight="bold", pad=10)
        below.imshow(to_image((GAIN * difference - 1).clamp(-1, 1)))
        if way is reference:
            facts = f"peak {size_text(way.peak)}, {way.seconds:.0f} s"
            below.set_visible(False)
        else:
            memory, took = way.peak / reference.peak, way.seconds / reference.seconds
            facts = f"{memory:.2f} x the memory, {took:.2f} x the time"
            wrong = f"off by {mean:.1f} of 255 on average, {most:.0f} at most"
            same = "the same picture: off by 0 of 255"
            below.set_xlabel(same if round(most) == 0 else wrong, color=ink, fontsize=13, labelpad=8)
        top.set_xlabel(facts, color=ink, fontsize=13, labelpad=7)
        for axis in (top, below):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color(dim)
    note = f"Difference from the full\ndecode, {GAIN} times enlarged\n(black: none)"
    figure.text(0.305, 0.27, note, color=dim, fontsize=14, ha="right", va="center", linespacing=1.5)
    figure.tight_layout(pad=1.2, w_pad=1.6, h_pad=1.4)
    figure.savefig(path, dpi=100, facecolor=background)
    pyplot.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    ways = all_ways()
    for theme in THEMES:
        draw(ways, theme, DOCS / f"comparison-{theme}.png")
    for way in ways:
        print(f"{way.title:24} {way.seconds:6.1f} s {size_text(way.peak):>9}")


if __name__ == "__main__":
    main()
