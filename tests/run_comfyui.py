"""Run in ComfyUI's Python by ``test_comfyui``: its own nodes and ours on the same VAEs, on the CPU.

python tests/run_comfyui.py CHECKOUT
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHECKOUT = sys.argv[1]
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, CHECKOUT)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy import model_management  # noqa: E402


def module_at(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_vae(config: Any) -> Any:
    """ComfyUI's VAE object of random weights, by the names that published files have."""
    from vae_lib.networks import WanConfig, build

    layouts = module_at("wan_layouts", ROOT / "tests" / "networks" / "wan_layouts.py")
    torch.manual_seed(0)
    weights = {name: tensor.clone() for name, tensor in build(config).state_dict().items()}
    return comfy.sd.VAE(sd=layouts.own_names(weights, config) if isinstance(config, WanConfig) else weights)


def compare(name: str, vae: Any, ours: dict[str, Any], frames: int = 1) -> None:
    """Pictures, or a video of so many ``frames``."""
    asked: list[float] = []
    load = model_management.load_models_gpu

    def noting(models: Any, memory_required: float = 0, **more: Any) -> Any:
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **more)

    def run(node: Any, **given: Any) -> tuple[Any, float]:
        torch.manual_seed(3)
        asked.clear()
        result = getattr(node, node.FUNCTION)(vae=vae, **given)
        return result, asked[-1]

    scale = vae.spacial_compression_decode()
    size = (96, 133) if frames == 1 else (64, 48)
    height, width = (side // scale for side in size)
    shape = (
        (1, vae.latent_channels, 1 + (frames - 1) // 4, height, width)
        if vae.latent_dim == 3
        else (2, vae.latent_channels, height, width)
    )
    given = {
        "VAEDecode": {"samples": {"samples": torch.randn(shape)}},
        "VAEEncode": {"pixels": torch.rand(frames, size[0] + 3, size[1], 3)},
    }
    model_management.load_models_gpu = noting
    try:
        for own_name, our_name in (("VAEDecode", "VAEGuardDecode"), ("VAEEncode", "VAEGuardEncode")):
            (own,), own_asked = run(nodes.NODE_CLASS_MAPPINGS[own_name](), **given[own_name])
            for route in ("Automatic", "Tiled", "Tiled + RAM"):
                more = {**given[own_name], "route": route, "memory_limit": 0.0}
                (result, report), our_asked = run(ours[our_name](), **more)
                one, other = (x["samples"] if isinstance(x, dict) else x for x in (own, result))
                largest = float((one - other).abs().max())
                print(f"{name}, {our_name}, {route}: {largest:.2g}; asked {our_asked / own_asked:.2f}; {report}")
                assert one.shape == other.shape
                assert largest < 2e-5
                assert report.startswith(("Decoded ", "Encoded "))
                assert our_asked <= (0.6 if frames == 1 else 1) * own_asked  # of a small video most are the weights
    finally:
        model_management.load_models_gpu = load


def main() -> None:
    found = module_at("vae_guard_nodes", ROOT / "__init__.py").NODE_CLASS_MAPPINGS
    from vae_lib.networks import SHAPES

    with torch.inference_mode():
        for name in ("sd", "flux", "qwen-image", "wan-2.2"):
            vae = random_vae(SHAPES[name])
            compare(name, vae, found)
            if vae.latent_dim == 3:
                compare(f"a video of {name}", vae, found, frames=9)


if __name__ == "__main__":
    main()
