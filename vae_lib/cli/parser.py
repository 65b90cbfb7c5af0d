"""What the commands take; their help texts teach the program."""

from __future__ import annotations

import argparse
from pathlib import Path

from vae_lib import __version__
from vae_lib.catalog import FAMILIES
from vae_lib.cli import commands, hub, work
from vae_lib.cli.check import run_check
from vae_lib.cli.demo import run_demo
from vae_lib.cli.values import ROUTES, byte_size, factor, family, number, pixels, positive
from vae_lib.device import DTYPES
from vae_lib.networks import SHAPES
from vae_lib.planning import Route

DESCRIPTION = """\
Decode the latents of Stable Diffusion with its VAE in as little memory as there is.

Every route but taesd gives the full decode's picture, up to rounding:
{routes}
With --route auto the fastest exact route that fits is taken, taesd only if no other does.
""".format(routes="\n".join(f"  {route.value:8} {route.row.help}" for route in Route))

EXAMPLES = """\
examples:
  python -m vae_lib demo
  python -m vae_lib inspect sdxl_vae.safetensors
  python -m vae_lib plan --vae sdxl_vae.safetensors --width 2048 --height 2048 --free 2GB --dtype fp16
  python -m vae_lib encode photo.jpg --vae sdxl_vae.safetensors -o latents.safetensors
  python -m vae_lib decode latents.safetensors --vae sdxl_vae.safetensors -o picture.png --budget 1.5GB
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m vae_lib", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    decode = _command(sub, "decode", "latents to a picture", work.run_decode)
    decode.add_argument(
        "latents", type=Path, metavar="LATENTS",
        help="latents (B, C, h, w) as the sampler leaves them, in a .safetensors with one tensor 'latents', or what "
        "torch.save, NumPy (.npy), ComfyUI (.latent) and kohya (.npz) write; of Wan's video models (1, C, T, h, w)",
    )  # fmt: skip
    decode.add_argument(
        "-o", "--output", type=Path, metavar="OUT.png",
        help="picture; OUT-1.png, OUT-2.png, ... for a batch or a video's frames, or with PyAV OUT.mp4",
    )  # fmt: skip
    decode.add_argument(
        "--fps", type=positive, default=16, metavar="N", help="frames a second of OUT.mp4 (default: 16; Wan 2.2 5B: 24)"
    )
    decode.add_argument(
        "--tensor", type=Path, metavar="OUT.safetensors",
        help="also write the tensor 'image' (B, 3, H, W) in [-1, 1], not clamped",
    )  # fmt: skip
    _work_options(decode)

    encode = _command(sub, "encode", "a picture to latents", work.run_encode)
    encode.add_argument(
        "image",
        type=Path,
        metavar="IMAGE",
        help="any picture that Pillow reads; cropped to multiples of 8 or 16 pixels",
    )
    encode.add_argument(
        "-o", "--output", type=Path, required=True, metavar="LATENTS.safetensors",
        help="the scaled mean latents",
    )  # fmt: skip
    _work_options(encode)

    inspect = _command(sub, "inspect", "what a weights file is", commands.run_inspect)
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")

    plan = _command(sub, "plan", "what each route would need for a size", commands.run_plan)
    plan.add_argument("--vae", type=Path, required=True, metavar="FILE", help="VAE, or checkpoint with one inside")
    plan.add_argument("--width", type=pixels, required=True, metavar="W")
    plan.add_argument("--height", type=pixels, required=True, metavar="H")
    plan.add_argument("--free", type=byte_size, metavar="SIZE", help="memory there is (default: what is free now)")
    plan.add_argument(
        "--threshold", type=byte_size, metavar="SIZE",
        help="full where at least this much is free, else the others: as 'Fixed threshold' in the WebUI's settings",
    )  # fmt: skip
    plan.add_argument("--batch", type=positive, default=1, metavar="N")
    plan.add_argument("--frames", type=positive, metavar="N", help="plan a video of so many frames, by Wan's VAE")
    plan.add_argument("--encode", action="store_true", help="plan an encode")
    plan.add_argument("--taesd", action="store_true", help="count on a TAESD being there")
    plan.add_argument("--device", choices=("cpu", "cuda", "mps"), help="to plan for (it need not be there)")
    plan.add_argument("--dtype", choices=DTYPES, help="default: fp32 on the CPU, else fp16")
    plan.add_argument("--json", action="store_true", help="print one JSON object")

    checks = _command(sub, "check", "try every route on this device: same picture, time, memory", run_check)
    checks.add_argument(
        "--vae", type=Path, metavar="FILE",
        help="VAE, or checkpoint with one inside (default: random weights)",
    )  # fmt: skip
    checks.add_argument(
        "--like", choices=SHAPES, default="sd", help="the shape of the random weights' network (default: sd)"
    )
    checks.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the best there is")
    checks.add_argument("--dtype", choices=DTYPES, help="default: fp32 on the CPU, else fp16")
    checks.add_argument("--encode", action="store_true", help="check the encode")
    checks.add_argument("--seconds", type=positive, default=60, metavar="N", help="at most (default: 60)")
    checks.add_argument("--free", type=byte_size, metavar="SIZE", help="memory to use at most (default: what is free)")
    checks.add_argument("--json", action="store_true", help="print one JSON object")

    demo = _command(sub, "demo", "encode and decode a photograph by every route", run_demo)
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("out"), metavar="DIR",
        help="where pictures go (default: out)",
    )  # fmt: skip
    demo.add_argument(
        "--budget", type=byte_size, metavar="SIZE",
        help="memory to allow (default: little more than each route's least)",
    )  # fmt: skip
    demo.add_argument("--image", type=Path, metavar="IMAGE", help="another picture than the bundled one")

    pull = _command(sub, "pull", "download a VAE from Hugging Face, resumable and verified", hub.run_pull)
    pull.add_argument(
        "reference", metavar="NAME",
        help="a name of the catalog, owner/name, owner/name/file, or a page's address",
    )  # fmt: skip
    pull.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    pull.add_argument(
        "--taesd-folder", type=Path, metavar="DIR",
        help="where TAESD goes, with the WebUI's own files (models/VAE-taesd)",
    )  # fmt: skip
    pull.add_argument(
        "--allow-pickle", action="store_true", help="take a .pt, .ckpt or .bin where there is no safetensors"
    )
    pull.add_argument("--rename", action="store_true", help="take another name when a different file has this one")
    pull.add_argument("--json", action="store_true", help="print one JSON object")

    catalog = _command(sub, "catalog", "the VAEs that pull knows by name", hub.run_catalog)
    catalog.add_argument("--json", action="store_true", help="print a JSON list")

    ui = _command(sub, "ui", "the VAE tab in the browser, without the WebUI", commands.run_ui)
    ui.add_argument("--folder", type=Path, metavar="DIR", help="folder with VAEs (default: the bundled one)")
    ui.add_argument("--port", type=positive, metavar="N", help="default: the first free one from 7870")
    ui.add_argument("--no-browser", action="store_true", help="do not open a browser")
    return parser


def _command(
    sub: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, run: object
) -> argparse.ArgumentParser:
    parser = sub.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _work_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae", type=Path, metavar="FILE",
        help="VAE (ldm or diffusers layout), or a checkpoint with one inside; not needed with --route taesd",
    )  # fmt: skip
    parser.add_argument("--taesd", type=Path, metavar="FILE", help="TAESD, allowed as the last resort")
    parser.add_argument("--route", choices=ROUTES, default="auto", help="default: auto")
    parser.add_argument(
        "--budget", type=byte_size, metavar="SIZE",
        help="memory for activations, beside the weights; default: what is free",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on the CPU, else fp16")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the best there is")
    parser.add_argument(
        "--family", type=family, metavar="NAME",
        help=f"whose latents they are, where the files do not tell or contradict themselves: {', '.join(FAMILIES)}",
    )  # fmt: skip
    parser.add_argument(
        "--scaling-factor", type=factor, metavar="F",
        help="latents are divided by it (default: the family's; 1: off)",
    )  # fmt: skip
    parser.add_argument(
        "--shift-factor", type=number, metavar="S", help="then it is added (default: the family's; 0: off)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="count the memory that it takes; on the CPU that slows it by a third",
    )
    parser.add_argument("--seamless", action="store_true", help="pad circularly, for textures sampled with Tiling")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
