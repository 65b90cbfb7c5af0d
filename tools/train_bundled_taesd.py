"""Train the TAESD decoder that VAE Guard ships for its bundled VAE, so that the demo has the taesd rung too.

    python -m tools.train_bundled_taesd wheels -o vae_lib/data/vae_guard_taesd.safetensors --minutes 11
    python -m tools.train_bundled_taesd wheels --evaluate vae_lib/data/vae_guard_taesd.safetensors

The wheels are those of `tools.train_bundled_vae`, and so are the pictures, their crops, the two held-out
photographs, the optimisers and `--steps` and `--minutes`; one seed decides everything here as well.

The decoder is distilled: its input is the scaled latents of a picture from the bundled VAE's encoder, and its
target is the bundled decoder's picture of them, not the photograph. What the latents do not hold cannot be
learned, and with the photograph as the target it would only be noise in the gradient; besides, the taesd rung
stands in for that decoder. Norms and attention of the bundled VAE see the whole picture, so pictures of 192
pixels are encoded and decoded as a whole, and the crops trained on are cut from latents and picture alike. A
pool of such pairs is renewed slowly, because a new pair costs nearly as much as a step.

The loss is L1 + 2 MSE. Blocks begin as the identity, Muon trains the convs inside (at a quarter of the VAE's
rate: no norm here forgives weights that grow), Adam the first and the last conv and the biases, under bf16
autocast. The weights are averaged (EMA) and saved in fp16, also on the way.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tools.train_bundled_vae import (
    ADAM_RATE,
    CONFIG,
    MUON_RATE,
    PICTURES,
    SEED,
    Muon,
    Sampler,
    load,
    psnr,
    read_picture,
    to_tensor,
)
from vae_lib.checkpoints import load_vae, read_header
from vae_lib.networks import TAESD, AutoencoderKL
from vae_lib.networks.taesd import Block

VAE_FILE = Path(__file__).resolve().parent.parent / "vae_lib" / "data" / "vae_guard_tiny.safetensors"
POOL = 64  # pairs of latents and picture to cut crops from
FIRST_PAIRS = 6  # of them, before the first step
POOL_SIDE = 192  # pixels
RENEW_EVERY = 5  # steps
EMA_DECAY = 0.99  # short, for a run of little more than a thousand steps
SAVE_EVERY = 100
# (share of the schedule at which it ends, crops per step, their side in pixels)
PHASES = ((0.75, 4, 64), (1.0, 1, 128))


def scaling_factor_of(path: Path) -> float:
    return float(read_header(path).metadata["scaling_factor"])


class Pairs:
    """Scaled latents and the bundled decoder's pictures of them, from a pool of training pictures."""

    def __init__(self, vae: AutoencoderKL, scaling_factor: float, wheels: Path, seed: int) -> None:
        self.vae, self.scaling_factor = vae, scaling_factor
        self.sampler = Sampler(wheels, seed)
        self.rng = np.random.default_rng(seed + 1)
        self.pool = [self.pair() for _ in range(FIRST_PAIRS)]

    @torch.inference_mode()
    def pair(self) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(self.sampler.batch(1, POOL_SIDE))
            picture = self.vae.decode(latents)
        return latents.float() * self.scaling_factor, picture.float()

    def renew(self) -> None:
        """Add a new pair, in the place of a random other one once the pool is full."""
        if len(self.pool) < POOL:
            self.pool.append(self.pair())
        else:
            self.pool[int(self.rng.integers(POOL))] = self.pair()

    def batch(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """Scaled latents (count, 4, side / 8, side / 8) and pictures (count, 3, side, side) in [-1, 1]."""
        scale = CONFIG.downscale
        latents, pictures = [], []
        for _ in range(count):
            whole_latents, whole_picture = self.pool[int(self.rng.integers(len(self.pool)))]
            top, left = (int(place) for place in self.rng.integers(0, (POOL_SIDE - side) // scale + 1, 2))
            rows, columns = slice(top, top + side // scale), slice(left, left + side // scale)
            latents.append(whole_latents[..., rows, columns])
            pictures.append(whole_picture[..., top * scale : top * scale + side, left * scale : left * scale + side])
        return torch.cat(latents), torch.cat(pictures)


def initialise(model: TAESD) -> None:
    """Convs keep the variance through a ReLU, blocks begin as the identity, the picture as mid grey."""
    assert model.decoder is not None
    for layer in model.decoder.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in model.decoder:
        if isinstance(layer, Block):
            nn.init.zeros_(cast(nn.Conv2d, layer.conv[-1]).weight)
        elif isinstance(layer, nn.Conv2d) and layer.bias is None:  # after an upsampling: no ReLU follows
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    last = cast(nn.Conv2d, model.decoder[-1])
    assert last.bias is not None
    nn.init.normal_(last.weight, std=0.2 * last.weight[0].numel() ** -0.5)
    nn.init.constant_(last.bias, 0.5)


def optimisers_for(model: TAESD) -> list[torch.optim.Optimizer]:
    """Muon for the convs inside; Adam for biases and the convs at latents and pixels."""
    inner = [value for value in model.parameters() if value.ndim == 4 and value.shape[:2] == (64, 64)]
    others = [value for value in model.parameters() if not any(value is other for other in inner)]
    muon = Muon(inner)
    muon.defaults["lr"] = MUON_RATE / 4
    return [muon, torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0)]


def save(model: TAESD, path: Path, scaling_factor: float, steps: int) -> None:
    """The weights in fp16 under TAESD's names; the metadata says whose latents they are for."""
    metadata = {
        "format": "pt",
        "vae_guard.family": "VAE Guard tiny",
        "scaling_factor": f"{scaling_factor:.5f}",
        "shift_factor": "0.0",
        "licence": "MIT",
        "training": json.dumps({"script": "tools/train_bundled_taesd.py", "seed": SEED, "steps": steps}),
    }
    tensors = {name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata)
    os.replace(partial, path)


@torch.inference_mode()
def held_out_psnr(
    model: TAESD, vae: AutoencoderKL, scaling_factor: float, wheels: Path
) -> dict[str, tuple[float, float]]:
    """dB from each held-out photograph, and from the bundled decoder's picture of it."""
    result = {}
    for picture in PICTURES:
        if not picture.weight:
            photograph = to_tensor(read_picture(picture, wheels))
            latents = vae.encode(photograph)
            output = model.decode(latents * scaling_factor)
            full = vae.decode(latents).clamp(-1, 1)
            result[picture.name] = (round(psnr(output, photograph), 2), round(psnr(output, full), 2))
    return result


def train(wheels: Path, output: Path, steps: int, minutes: float) -> None:
    start = time.monotonic()
    torch.manual_seed(SEED)
    scaling_factor = scaling_factor_of(VAE_FILE)
    pairs = Pairs(load(VAE_FILE), scaling_factor, wheels, SEED)
    model = TAESD(CONFIG.latent_channels, encoder=False)
    average = TAESD(CONFIG.latent_channels, encoder=False).eval().requires_grad_(False)
    initialise(model)
    average.load_state_dict(model.state_dict())
    optimisers = optimisers_for(model)
    peak_rates = [optimiser.defaults["lr"] for optimiser in optimisers]

    running = 0.0
    for step in range(steps + 1):
        progress = max(step / steps, (time.monotonic() - start) / (60 * minutes))
        if progress >= 1:
            break
        factor = min(1, (step + 1) / 50) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for optimiser, rate in zip(optimisers, peak_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        if step % RENEW_EVERY == 0:
            pairs.renew()
        count, side = next((count, side) for end, count, side in PHASES if progress < end)
        latents, target = pairs.batch(count, side)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(latents)
        error = decoded.float() - target
        loss = error.abs().mean() + 2 * error.square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 25 == 0:
            seconds = time.monotonic() - start
            print(f"{step:6d} {progress:6.1%} {seconds:7.0f} s  {side:3d} px  {running:.4f}", flush=True)
        if step and step % SAVE_EVERY == 0:
            save(average, output, scaling_factor, step)
    save(average, output, scaling_factor, step)
    print(f"{step:6d} done", flush=True)


def evaluate(path: Path, wheels: Path) -> None:
    """Print the held-out PSNRs of the decoder in a file."""
    model = load_vae(path, dtype=torch.float32, kind="TAESD").model
    assert isinstance(model, TAESD)
    figures = held_out_psnr(model, load(VAE_FILE), scaling_factor_of(VAE_FILE), wheels)
    for name, (photograph, full) in figures.items():
        print(f"{name}: {photograph:.2f} dB from the photograph, {full:.2f} dB from the full decode")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with the wheels that hold the pictures")
    parser.add_argument("-o", "--output", type=Path, help="safetensors file to write; trains")
    parser.add_argument("--steps", type=int, default=8000, help="length of the schedule (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end it after this time at the latest")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="measure a trained file on the held-out pictures")
    arguments = parser.parse_args()
    if arguments.output is not None:
        train(arguments.wheels, arguments.output, arguments.steps, arguments.minutes)
    if arguments.evaluate is not None:
        evaluate(arguments.evaluate, arguments.wheels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
