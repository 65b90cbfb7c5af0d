"""What hostile latents files make of a processing object. Run by ``test_afterwards.py`` in a process of its own."""

import dataclasses
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

folder = Path(sys.argv[1])
sys.argv = ["webui.py"]
from modules import processing, shared

from vae_lib.checkpoints import unfinished
from vae_lib.guard.again import DecodedAgain
from vae_lib.hosts import a1111, finishing

HOSTILE = [
    "/tmp/evil", "../../evil", "C:\\evil", "..", "a\0b", "x" * 300, 7, -1, True, False, 0.5, float("inf"), None,
    [], ["/tmp/evil"], [1, 2, 3], [1, 2, 3, 4], [[1]], {}, {"outdir_samples": "/tmp/evil"}, {"sd_vae": 7},
    {"sd_vae": "None", "outdir_samples": "/tmp/evil"}, {"GFPGAN": ["/tmp/evil"], "": 7},
]  # fmt: skip
LATENTS = torch.zeros(2, 4, 2, 2)


def image(kind: str, mode: str = "RGB") -> torch.Tensor:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8)).save(buffer, kind)
    return torch.from_numpy(np.frombuffer(buffer.getvalue(), dtype=np.uint8).copy())


def read_back(afterwards: object, **images: torch.Tensor) -> unfinished.Latents:
    path = folder / "20260101-000000-000000.safetensors"
    tensors = {"latents": LATENTS, **{name.replace("_", "."): data for name, data in images.items()}}
    save_file(tensors, path, {"model": "none", "afterwards": json.dumps(afterwards)})
    return unfinished.read(path)


def made(latents: unfinished.Latents) -> processing.StableDiffusionProcessing:
    vae = finishing.noted_vae(latents, {"sd_vae": str})
    return finishing.processing_of(latents, DecodedAgain([]), vae, a1111.Host().output_folder, lambda given: given)


def classes() -> tuple[type, type]:
    return processing.StableDiffusionProcessingTxt2Img, processing.StableDiffusionProcessingImg2Img


sound = made(read_back([{}, {}, []]))
own = {*vars(sound), *vars(made(read_back([{"is_img2img": True}, {}, []])))}
known = {field.name for one in classes() for field in dataclasses.fields(one)}
names = sorted(known | own | set(dir(sound)) | {"vae", "postprocessing", "is_img2img", "anything", "job_timestamp"})
problems: list[str] = []
chosen = random.Random(27)
for _ in range(400):
    values = {name: chosen.choice(HOSTILE) for name in chosen.sample(names, chosen.randint(1, 40))}
    where = {chosen.choice([*names, "overlay_images"]): [0]}
    p = made(read_back([values, where, []], image_0=image("PNG")))
    tab = "img2img" if "Img2Img" in type(p).__name__ else "txt2img"
    if (p.outpath_samples, p.outpath_grids) != tuple(
        getattr(shared.opts, f"outdir_{tab}_{kind}") for kind in ("samples", "grids")
    ):
        problems.append(f"folders of {values}")
    if p.override_settings not in (sound.override_settings, {**sound.override_settings, "sd_vae": "None"}):
        problems.append(f"settings of {values}")
    if more := set(vars(p)) - own - known:
        problems.append(f"attributes {sorted(more)} of {values}")
    for name, value in vars(p).items():
        types = {"int": int, "float": (int, float), "str": str, "bool": int}
        declared = types.get(next((f.type for f in dataclasses.fields(p) if f.name == name), ""))
        if declared is not None and value is not None and not isinstance(value, (declared, list)):
            problems.append(f"{name} became {value!r}")
        is_text = isinstance(value, str) and "prompt" not in name and not name.startswith("outpath")
        if is_text and (set(value) & set("/\\:\0") or value == ".."):
            problems.append(f"{name} became {value!r}")
        if name.endswith("prompts") and not all(isinstance(text, str) for text in value or ()):
            problems.append(f"{name} became {value!r}")
        if name.endswith("seeds") and not all(isinstance(number, int) for number in value or ()):
            problems.append(f"{name} became {value!r}")

noted = finishing.noted(sound, {"sd_vae": "None"})
sound.overlay_images = [(Image.new("RGB", (8, 8)), np.ones((8, 8), np.float32))]  # Neo's, by masks in fp32
precise = finishing.noted(sound, {"sd_vae": "None"})
overlay = [{}, {"overlay_images": [0]}, []]
print(json.dumps({
    "problems": problems[:5],
    "noted": sorted(noted.values),
    "precise": [sorted(set(noted.values) - set(precise.values)), list(precise.images), list(precise.not_repeated)],
    "PNG": len(read_back(overlay, image_0=image("PNG")).afterwards.images.get("overlay_images", ())),
    "others": [kind for kind in ("EPS", "BMP", "GIF", "TIFF", "JPEG")
               if read_back(overlay, image_0=image(kind)).afterwards.images],
}))  # fmt: skip
