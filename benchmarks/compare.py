"""Time, peak memory and exactness of VAE decoding, ours beside the peers', on the same weights and latents.

    python -m benchmarks.compare --sizes 512 1024 --rounds 3 -o benchmarks/results/cpu.json

Every system decodes the same random latents with the same random weights of the shape of Stable Diffusion's VAE (or
the bundled VAE's, with --bundled). The systems take turns, round after round, so that a machine whose speed drifts is
unfair to none. Time is the median over the rounds; peak memory comes from a run of its own and is the live tensor bytes
beyond weights and latents on the CPU, the allocator's peak on a GPU. What our offload keeps in main memory (on the CPU:
in a scratch file) is not on the device and not counted. "max error" is the largest difference from the float32 picture
of the plain network, whose values span about 2.

Peers: diffusers (full, and its tiled mode with default settings); the decoder of ldm, which AUTOMATIC1111 runs, from
the package stable-diffusion-sdkit if that is installed; and a stand-in, written for this comparison, for the tiled
decode of ComfyUI and Forge: three passes of 64x64, 32x128 and 128x32 latents, overlap 16, feathered, averaged.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.checkpoints import load_vae
from vae_lib.decode import Ladder, PeakMemory, Route, candidates
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig

Decode = Callable[[Tensor], Tensor]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {
    "sd": AutoencoderKLConfig(has_encoder=False, use_quant_conv=False),
    "sd3": AutoencoderKLConfig(
        has_encoder=False, z_channels=16, embed_dim=16, use_quant_conv=False, use_post_quant_conv=False
    ),
}


def main() -> None:
    options = _options()
    torch.manual_seed(0)
    device = torch.device(options.device)
    records = []
    for shape in options.shapes:
        vae = _weights(shape, options.bundled)
        for dtype in options.dtypes:
            for size in options.sizes:
                for batch in options.batches:
                    records += _compare(vae, shape, DTYPES[dtype], size, batch, device, options)
    result = {"machine": _machine(device), "records": records}
    print(_table(result))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(_table(result) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[512], help="pixels along a side")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["sd"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["fp32"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", help="only those whose name contains one of these words")
    parser.add_argument(
        "--bundled", action="store_true", help="the bundled VAE instead of random full-width weights"
    )
    parser.add_argument("-o", "--output", type=Path, help="JSON file; a table goes beside it")
    return parser.parse_args()


def _weights(shape: str, bundled: bool) -> AutoencoderKL:
    if bundled:
        path = Path(__file__).parent.parent / "vae_lib" / "data" / "vae_guard_tiny.safetensors"
        model = load_vae(path, dtype=torch.float32).model
        assert isinstance(model, AutoencoderKL)
        return model
    return AutoencoderKL(SHAPES[shape]).eval().requires_grad_(False)


def _compare(
    vae: AutoencoderKL,
    shape: str,
    dtype: torch.dtype,
    size: int,
    batch: int,
    device: torch.device,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    latents = torch.randn(
        batch, vae.latent_channels, size // 8, size // 8, generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        reference = torch.cat([vae.float().to(device).decode(z.to(device)[None]).cpu() for z in latents])
    vae.to(device, dtype)
    latents = latents.to(device, dtype)
    systems = {
        name: decode
        for name, decode in _systems(vae, latents, device, dtype)
        if not options.systems or any(word in name for word in options.systems)
    }
    times: dict[str, list[float]] = {name: [] for name in systems}
    cpu_times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(options.rounds):
        for name, decode in systems.items():
            gc.collect()
            started, cpu_started = time.perf_counter(), time.process_time()
            with torch.no_grad():
                decode(latents)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - started)
            cpu_times[name].append(time.process_time() - cpu_started)
            print(f"{shape} {size} {name}: {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    records = []
    for name, decode in systems.items():
        gc.collect()
        with torch.no_grad(), PeakMemory(device) as peak:
            picture = decode(latents)
        error = (picture.float().cpu() - reference).abs()
        records.append(
            {
                "shape": shape,
                "dtype": next(key for key, value in DTYPES.items() if value == dtype),
                "size": size,
                "batch": batch,
                "system": name,
                "seconds": statistics.median(times[name]),
                "spread": [min(times[name]), max(times[name])],
                "cpu_seconds": statistics.median(cpu_times[name]),
                "peak_bytes": peak.bytes,
                "max_error": error.max().item(),
                "psnr": -10 * torch.log10(error.square().mean() / 4).item(),
            }
        )
        del picture
    return records


def _systems(
    vae: AutoencoderKL, latents: Tensor, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Decode]]:
    diffusers = _diffusers(vae, device, dtype)
    if diffusers is not None:
        yield "diffusers full", lambda z: diffusers.disable_tiling() or diffusers.decode(z).sample
        yield "diffusers tiled", lambda z: diffusers.enable_tiling() or diffusers.decode(z).sample
    ldm = _ldm(vae, device, dtype)
    if ldm is not None:
        yield "ldm full", lambda z: torch.cat([ldm(item[None]) for item in z])
    yield "three tiled passes", lambda z: _three_passes(vae, z)
    _, _, height, width = latents.shape
    work = Ladder(vae, device=device, dtype=dtype).work("decode", height, width, len(latents))
    for route in (Route.FULL, Route.TILED, Route.OFFLOAD):
        plans = candidates(work, route)
        fastest, least = min(plans, key=lambda p: p.seconds), min(plans, key=lambda p: p.peak_bytes)
        yield f"ours {route.value}", _ours(vae, route, device, dtype, fastest.peak_bytes)
        if route is not Route.FULL:
            yield f"ours {route.value}, smallest", _ours(vae, route, device, dtype, least.peak_bytes)


def _ours(vae: AutoencoderKL, route: Route, device: torch.device, dtype: torch.dtype, budget: int) -> Decode:
    ladder = Ladder(vae, device=device, dtype=dtype, order=(route,), budget=lambda _: budget)
    return lambda z: ladder.decode(z).result


def _diffusers(vae: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> Any:
    """diffusers' AutoencoderKL with our weights; its keys are paired with ours by shape and order of execution."""
    try:
        from diffusers import AutoencoderKL as Diffusers
    except ImportError:
        print("diffusers is not installed: left out", file=sys.stderr)
        return None
    config = vae.config
    levels = len(config.ch_mult)
    other = Diffusers(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_post_quant_conv,
        sample_size=512,
    )
    other.decoder.load_state_dict(_to_diffusers(vae))
    if vae.post_quant_conv is not None:
        other.post_quant_conv.load_state_dict(vae.post_quant_conv.state_dict())
    other.encoder = other.quant_conv = None
    return other.eval().requires_grad_(False).to(device, dtype)


def _to_diffusers(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The decoder's weights under diffusers' names."""
    assert vae.decoder is not None
    last = len(vae.config.ch_mult) - 1
    renamed = {}
    for key, tensor in vae.decoder.state_dict().items():
        parts = key.split(".")
        if parts[0] == "up":
            block = f"up_blocks.{last - int(parts[1])}"
            rest = ["resnets", *parts[3:]] if parts[2] == "block" else ["upsamplers", "0", *parts[3:]]
            parts = [block, *rest]
        elif parts[:2] == ["mid", "attn_1"]:
            name = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}[
                parts[2]
            ]
            parts = ["mid_block.attentions.0", name, parts[3]]
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        elif parts[0] == "mid":
            parts = ["mid_block.resnets", str(int(parts[1][-1]) - 1), *parts[2:]]
        name = ".".join(parts).replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        renamed[name] = tensor
    return renamed


def _ldm(vae: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> Decode | None:
    """The decoder of ldm with our weights."""
    try:
        from ldm.modules.diffusionmodules.model import (
            Decoder,  # type: ignore[import-not-found, unused-ignore]
        )
    except ImportError as error:
        print(f"ldm is not installed: left out ({error})", file=sys.stderr)
        return None
    config = vae.config
    decoder = Decoder(
        ch=config.ch, out_ch=3, ch_mult=config.ch_mult, num_res_blocks=config.num_res_blocks, attn_resolutions=[],
        in_channels=3, resolution=256, z_channels=config.z_channels,
    )  # fmt: skip
    assert vae.decoder is not None
    decoder.load_state_dict(vae.decoder.state_dict())
    decoder.eval().requires_grad_(False).to(device, dtype)
    post_quant: nn.Module = vae.post_quant_conv or nn.Identity()
    return lambda z: decoder(post_quant(z))


def _three_passes(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    passes = [_tiled(vae, latents, *tile) for tile in ((64, 64), (32, 128), (128, 32))]
    return sum(passes[1:], passes[0]).div_(len(passes))


def _tiled(
    vae: AutoencoderKL, latents: Tensor, tile_height: int, tile_width: int, overlap: int = 16
) -> Tensor:
    """Overlapping tiles, each normalised and attended by itself, blended with feathered edges."""
    batch, _, height, width = latents.shape
    out = latents.new_zeros(batch, 3, height * 8, width * 8)
    weights = torch.zeros_like(out[:1, :1])
    for top in range(0, max(1, height - overlap), tile_height - overlap):
        for left in range(0, max(1, width - overlap), tile_width - overlap):
            y, x = max(0, min(top, height - tile_height)), max(0, min(left, width - tile_width))
            part = vae.decode(latents[:, :, y : y + tile_height, x : x + tile_width])
            ramps = [
                torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)).clamp(max=overlap * 8)
                / (overlap * 8)
                for n in part.shape[2:]
            ]
            mask = (ramps[0][:, None] * ramps[1]).to(part)
            area = (..., slice(y * 8, y * 8 + part.shape[2]), slice(x * 8, x * 8 + part.shape[3]))
            out[area] += part * mask
            weights[area] += mask
    return out.div_(weights)


def _machine(device: torch.device) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": name, "decoder": device.type, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} thread(s), PyTorch {machine['torch']}, "
        f"{machine['date']}.",
        "Ratios are to diffusers' full decode in the same run: of the process's CPU time where the CPU decodes (other "
        "work on the machine stretches the time on the clock, the CPU time less), of the time on the clock on a GPU.",
        "",
        "| shape, size, dtype | system | time (spread) | CPU time | ratio | peak | ratio | max error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in result["records"]:
        key = tuple(record[name] for name in ("shape", "size", "dtype", "batch"))
        if record["system"] == "diffusers full":
            base[key] = record
        other = base.get(key)
        ratios = ["-", "-"]
        if other is not None:
            clock = "cpu_seconds" if machine["decoder"] == "cpu" else "seconds"
            ratios = [f"{record[name] / other[name]:.2f}" for name in (clock, "peak_bytes")]
        low, high = record["spread"]
        what = f"{record['shape']} {record['size']}x{record['size']} {record['dtype']}"
        what += f" x{record['batch']}" if record["batch"] > 1 else ""
        lines.append(
            f"| {what} | {record['system']} | {record['seconds']:.2f} s ({low:.2f}-{high:.2f}) | "
            f"{record['cpu_seconds']:.2f} s | {ratios[0]} | "
            f"{record['peak_bytes'] / 2**20:.0f} MiB | {ratios[1]} | {record['max_error']:.1e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
