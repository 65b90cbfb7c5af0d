"""The table of docs/files.md: files as each tool writes them, and what becomes of them here.

``python -m tests.checkpoints.files_table`` makes it anew; ``test_files_table`` holds it to what the code does.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL as DiffusersVAE
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from tests.checkpoints import corpus, odd
from tests.checkpoints.test_source import gguf
from tests.networks import taehv
from tests.networks.small import FLUX2, QWEN21, SD_SHAPED, WAN, WAN22, network, sd3_like, taesd, weights_of
from tests.networks.wan_layouts import diffusers_names, names_of_2d, own_names
from vae_lib.checkpoints import load_latents, load_vae
from vae_lib.errors import VAEGuardError

DOCUMENT = Path(__file__).parents[2] / "docs" / "files.md"
BEGIN, END = "<!-- made by tests/checkpoints/files_table.py -->", "<!-- end -->"

SMALL_WAN = replace(WAN, z_channels=16)
UPSCALER = replace(SD_SHAPED, ch_mult=(1, 1, 1))
FLUX1 = sd3_like(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
WAN_22 = replace(WAN22, z_channels=48)
QWEN_21 = replace(QWEN21, z_channels=64)

Weights = dict[str, torch.Tensor]
Row = tuple[str, str, str]  # what it is, the file's name, what becomes of it


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def _half(weights: Weights, half: str) -> Weights:
    return {key.removeprefix(f"{half}."): value for key, value in weights.items() if key.startswith(half)}


def _vaes(folder: Path) -> Iterator[tuple[str, Path]]:
    """What a file is, and the file."""
    vae, tiny = weights_of(network(SD_SHAPED)), weights_of(taesd())
    flux2 = weights_of(network(FLUX2)) | {
        "bn.running_mean": torch.zeros(128),
        "bn.running_var": torch.ones(128),
    }
    theirs = DiffusersVAE(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        scaling_factor=0.13025,
    )
    unet = {"model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(640, 2048)}

    def safetensors(name: str, weights: Weights, **metadata: str) -> Path:
        save_file(weights, folder / name, metadata or None)
        return folder / name

    def pickled(name: str, stored: object, **options: object) -> Path:
        torch.save(stored, folder / name, **options)  # type: ignore[arg-type]
        return folder / name

    legacy = {"_use_new_zipfile_serialization": False}
    yield "VAE of Stability AI, CompVis, A1111", safetensors("vae.safetensors", vae)
    yield (
        "the same with metadata (modelspec)",
        safetensors("sdxl.safetensors", vae, **{"modelspec.architecture": "stable-diffusion-xl-v1-base"}),
    )
    yield (
        "the same in fp8",
        safetensors("fp8.safetensors", {key: value.to(torch.float8_e4m3fn) for key, value in vae.items()}),
    )
    yield (
        "checkpoint with a VAE inside",
        safetensors("model.safetensors", _prefixed("first_stage_model.", vae) | unet),
    )
    yield "torch.save", pickled("vae.pt", {"state_dict": vae})
    yield "torch.save before PyTorch 1.6", pickled("old.ckpt", {"state_dict": vae}, **legacy)
    yield "torch.save, pickle protocol 4", pickled("protocol4.pt", {"state_dict": vae}, pickle_protocol=4)
    hyper = {"ref_type": int, "key_type": str, "where": Path("a/b")}
    yield (
        "PyTorch Lightning, with OmegaConf",
        pickled("last.ckpt", {"hyper_parameters": hyper, "state_dict": vae}),
    )
    for key in ("params", "params_ema", "ema", "generator", "vae", "net"):
        yield f"a training script (`{key}`)", pickled(f"{key}.pth", {key: vae, "epoch": 3})
    for prefix in ("module.", "_orig_mod.", "ema_model.", "model.", "model.vae."):
        yield (f"a wrapper (`{prefix}`)", safetensors(f"{prefix}vae.safetensors", _prefixed(prefix, vae)))
    theirs.save_pretrained(folder / "diffusers")
    yield "diffusers, with its config.json", folder / "diffusers" / "diffusion_pytorch_model.safetensors"
    yield "diffusers' file alone", safetensors("moved.safetensors", weights_of(theirs))
    half = {key.replace(".attn_1.q.", ".attn_1.to_q.").replace(".attn_1.k.", ".attn_1.to_k."): vae[key] for key in vae}
    yield "ldm's names with diffusers' of attention", safetensors("half-converted.safetensors", half)
    (folder / "download").mkdir()
    theirs.save_pretrained(folder / "download")
    second = folder / "download" / "diffusion_pytorch_model (1).safetensors"
    shutil.copy(folder / "download" / "diffusion_pytorch_model.safetensors", second)
    yield "a second download beside the config.json of the first", second
    upscaler = weights_of(network(UPSCALER))
    unet_of_sd2 = {
        "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 1024)
    }
    yield (
        "x4 upscaler",
        safetensors("x4-upscaler-ema.safetensors", _prefixed("first_stage_model.", upscaler) | unet_of_sd2),
    )
    edm = {"edm_mean": torch.zeros(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}
    playground = _prefixed("first_stage_model.", vae) | unet | edm
    yield "Playground v2.5", safetensors("playground-v2.5.safetensors", playground)
    flux = weights_of(network(FLUX1))
    yield "FLUX.1 (Black Forest Labs)", safetensors("ae.sft", flux)
    yield "the same with Z-Image, Chroma, Lumina 2", safetensors("zimage_vae.safetensors", flux)
    transformer = {"model.diffusion_model.cap_embedder.1.weight": torch.zeros(1)}
    yield "a checkpoint of Z-Image", safetensors("z_image_turbo.safetensors", _prefixed("vae.", flux) | transformer)
    quant = replace(FLUX1, use_quant_conv=True, use_post_quant_conv=True)
    yield "16 channels, another network", safetensors("other16.safetensors", weights_of(network(quant)))
    yield "FLUX.2", safetensors("flux2.safetensors", flux2)
    yield ("FLUX.2 without its statistics", safetensors("flux2-bare.safetensors", weights_of(network(FLUX2))))
    wan = weights_of(network(SMALL_WAN))
    yield (
        "Wan 2.1, Qwen-Image (Comfy-Org's copies)",
        safetensors("qwen_image_vae.safetensors", own_names(wan)),
    )
    yield "the same of its makers", pickled("Wan2.1_VAE.pth", own_names(wan))
    (folder / "qwen").mkdir()
    yield (
        "AutoencoderKLQwenImage and AutoencoderKLWan of diffusers",
        safetensors("qwen/diffusion_pytorch_model.safetensors", diffusers_names(wan, SMALL_WAN)),
    )
    yield "Qwen2D, a conversion", safetensors("Qwen2D_VAE.safetensors", names_of_2d(wan, SMALL_WAN))
    yield "Wan 2.2 5B", safetensors("wan2.2_vae.safetensors", own_names(weights_of(network(WAN_22)), WAN_22))
    yield (
        "Qwen-Image 2.1",
        safetensors("qwen_image_2.1_vae.safetensors", own_names(weights_of(network(QWEN_21)), QWEN_21, taps=1)),
    )
    yield "half of a TAESD", pickled("taesd_decoder.pth", _half(tiny, "decoder"))
    yield "TAESD of diffusers", safetensors("taesd.safetensors", weights_of(AutoencoderTiny()))
    yield "TAEHV, the TAESD of Wan 2.1 and Qwen-Image", pickled("taew2_1.pth", taehv.weights())
    yield "the same of Wan 2.2 5B", safetensors("taew2_2.safetensors", taehv.of_another_model())
    (folder / "odd").mkdir()
    for path in odd.write(folder / "odd"):
        yield "something else", path
    (folder / "vae.gguf").write_bytes(gguf({"decoder.conv_in.weight": 1, "decoder.up.0.block.0.conv1.weight": 8}))
    yield "GGUF", folder / "vae.gguf"
    yield "a pickle that acts", pickled("acts.pt", {"state_dict": corpus.Runs(os.system, "exit 1")})
    yield "something else", safetensors("lora.safetensors", {"lora_unet_mid.lora_up.weight": torch.zeros(1)})


def _latents(folder: Path) -> Iterator[tuple[str, Path]]:
    latents = torch.zeros(1, 4, 8, 8)

    def numpy(name: str, save: Callable[[], None]) -> Path:
        save()
        return folder / name

    def safetensors(name: str, tensors: Weights) -> Path:
        save_file(tensors, folder / name)
        return folder / name

    def pickled(name: str, stored: object) -> Path:
        torch.save(stored, folder / name)
        return folder / name

    version = {"latent_format_version_0": torch.tensor([])}
    yield "`encode`, the WebUI extension", safetensors("latents.safetensors", {"latents": latents})
    yield "any tool, one tensor", safetensors("z.safetensors", {"z": latents})
    yield "ComfyUI", safetensors("ComfyUI_00001_.latent", {"latent_tensor": latents} | version)
    yield "ComfyUI, the first version", safetensors("old.latent", {"latent_tensor": latents})
    yield "torch.save of a tensor", pickled("latents.pt", latents)
    yield "torch.save of a list", pickled("list.pt", [latents[0], latents[0]])
    yield "torch.save of a dict", pickled("dict.pt", {"samples": latents})
    yield "NumPy", numpy("latents.npy", lambda: np.save(folder / "latents.npy", latents.numpy()))
    yield "kohya's cache", numpy("img.npz", lambda: np.savez(folder / "img.npz", latents=latents[0].numpy()))
    yield "a transformer's sequence", safetensors("tokens.safetensors", {"latents": torch.zeros(1, 64, 64)})
    yield "a video's", safetensors("video.safetensors", {"latents": torch.zeros(1, 16, 3, 8, 8)})
    yield "something else", pickled("numbers.pt", [1, 2])


def _of_vae(path: Path) -> str:
    identity = load_vae(path).identity
    family = f"{identity.kind}, {identity.layout}, {identity.family_name}"
    family += f" (by its name {identity.guess.name})" if identity.guess and not identity.family else ""
    return f"read: {family}" if identity.family or identity.candidates else f"read, but: {identity.explanation}"


def _of_latents(path: Path) -> str:
    latents, metadata = load_latents(path, videos=True)
    own = ", as the VAE gives them (factors 1 and 0)" if metadata.get("scaling_factor") == "1" else ""
    return f"read: {'x'.join(map(str, latents.shape))}{own}"


def _rows(files: Iterator[tuple[str, Path]], read: Callable[[Path], str]) -> Iterator[Row]:
    for what, path in files:
        try:
            outcome = read(path)
        except VAEGuardError as error:
            outcome = f"refused: {str(error).removeprefix(path.name).lstrip(': ')}"
        yield what, path.name, outcome


def _table(rows: Iterator[Row]) -> str:
    lines = ["| written by, or what it is | file | here |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | `{name}` | {said} |" for what, name, said in rows)])


def made() -> str:
    """Both tables, in Markdown."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vaes, latents = Path(folder) / "vaes", Path(folder) / "latents"
        vaes.mkdir()
        latents.mkdir()
        return (
            f"### VAEs\n\n{_table(_rows(_vaes(vaes), _of_vae))}\n\n"
            f"### Latents\n\n{_table(_rows(_latents(latents), _of_latents))}"
        )


def documented() -> str:
    """The tables as docs/files.md has them."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*)\n{re.escape(END)}", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return "" if found is None else found[1].strip()


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{made()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
