"""SD.Next's decode and encode, with and without VAE Guard, on stand-ins for its modules.

Run by ``test_sdnext.py`` in a process of its own. Prints one JSON object.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import sdnext_webui
import torch
from PIL import Image

sys.argv = ["webui.py"]
sdnext_webui.become()
from modules import patches, paths, processing, processing_vae, sd_models, sd_vae, shared

from vae_lib import hosts
from vae_lib.errors import VAEGuardError
from vae_lib.guard import Guard, Request, decode_again
from vae_lib.guard.forward import Forward
from vae_lib.guard.host import family_name
from vae_lib.hosts import pipeline_vae
from vae_lib.webui import panel

OOM = "CUDA out of memory. Made by the test."
host = hosts.choose()
answer = {"host": type(host).__module__, "accounts": host.api_accounts(), "has api": host.has_api()}
pipe = sd_models.model_data.sd_model
own_vae = pipe.vae
picture = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1


def generate(kind="Txt2Img", request=None, **values):
    p = getattr(processing, f"StableDiffusionProcessing{kind}")(prompt="a cup", seed=7, **values)
    p.vae_guard = request
    return p, processing.process_images(p)


def worst(one, other):
    pairs = zip(one.images, other.images, strict=True)
    return max(int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()) for a, b in pairs)


KINDS = {
    "txt2img": ("Txt2Img", {}), "batch": ("Txt2Img", {"batch_size": 2}), "n_iter": ("Txt2Img", {"n_iter": 2}),
    "img2img": ("Img2Img", {"init_images": [picture]}), "hires": ("Txt2Img", {"hr_force": True, "hr_upscaler": "A"}),
}  # fmt: skip
plain = {name: generate(kind, **values)[1] for name, (kind, values) in KINDS.items()}
seen = []
outcome = Forward._outcome


def noting(self, operation, x, is_video, preference):
    seen.append(operation.value)
    return outcome(self, operation, x, is_video, preference)


Forward._outcome = noting
guard = Guard(host)
host.wrap(guard)
made, records, calls = {}, {}, {}
for name, (kind, values) in KINDS.items():
    for route in ("Full", "Tiled", "Tiled + RAM", "CPU"):
        guard.kept.clear()
        seen.clear()
        p, processed = generate(kind, Request(False, route), **values)
        made[f"{name} by {route}"] = worst(processed, plain[name]), processed.infotexts[-1].splitlines()[-1]
    calls[name] = list(seen)
    records[name] = [item.shape[0] for item in guard.kept.items()], [item.route for item in guard.kept.items()]
answer |= {
    "pictures": made,
    "kept": records,
    "calls": calls,
    "left": [name for name in vars(own_vae) if name.startswith("_vae_guard")],
}

# Outside of a generation SD.Next's functions are ours, and the VAE is nobody's.
seen.clear()
latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(2))
processing_vae.vae_decode(latents, pipe)
processing_vae.full_vae_encode(picture, pipe)
own_vae.decode(latents)
answer["outside"] = list(seen)

# Whatever fails in the decode: SD.Next's empty list, the latents, and a sentence.
guard.kept.clear()
broken = type(own_vae)._decode


def fail(*args, **kwargs):
    raise torch.OutOfMemoryError(OOM)


fail.__module__ = broken.__module__
Forward._outcome, type(own_vae)._decode = fail, fail
p, lost = generate("Img2Img", overlay_images=[Image.new("RGBA", (16, 16), (255, 0, 0, 255))], init_images=[picture],
                   detailer_enabled=True)  # fmt: skip
answer["lost"] = len(lost.images), list(p.comments), len(guard.kept.unfinished())
Forward._outcome, type(own_vae)._decode = outcome, broken
host.unwrap()
p, wanted = generate("Img2Img", overlay_images=[Image.new("RGBA", (16, 16), (255, 0, 0, 255))], init_images=[picture])
host.wrap(guard)
(held,) = guard.kept.unfinished()
again = decode_again(guard, held, saved=True)
answer["again"] = {
    "worst": worst(SimpleNamespace(images=[image for image, _ in again]), wanted),
    "infotext": again[0][1], "not repeated": held.not_repeated, "unfinished": len(guard.kept.unfinished()),
    "saved": [path.name for path in Path(paths.data_path).rglob("*.png")],
    "own again": processing.process_images_inner.__wrapped__ is sdnext_webui.process_images_inner,
}  # fmt: skip

# NaN: black, kept; decoded again the sentence comes through.
weight = own_vae.decoder.conv_out.weight.data
sound = weight.clone()
weight.fill_(torch.nan)
p, black = generate()
answer["black"] = int(np.asarray(black.images[0]).max()), list(p.comments)
try:
    decode_again(guard, guard.kept.unfinished()[0])
except VAEGuardError as error:
    answer["again of NaN"] = str(error)
weight.copy_(sound)

# The choice of a VAE, and the way back after img2img has made a pipeline of its own.
folder = host.folders().vae
(folder / "other.safetensors").write_text("2", encoding="utf-8")
(folder / "none.safetensors").write_text("not a number", encoding="utf-8")
sd_vae.vae_dict.clear()
sd_vae.vae_dict.update({path.name: str(path) for path in folder.iterdir()})
shared.opts.data_labels["sd_vae"].onchange = lambda: sd_vae.reload_vae_weights()
before = host.vae_in_use()
host.select_vae("other.safetensors")
p, with_other = generate()
(other,) = guard.kept.items()[:1]
chosen = before, host.vae_in_use(), host.vae_of_generation(), worst(with_other, plain["txt2img"]) > 20
sd_models.model_data.sd_model = sdnext_webui.pipeline(pipe.vae)
try:
    host.select_vae("none.safetensors")
except VAEGuardError as error:
    answer["refused"] = str(error), shared.opts.sd_vae, host.vae_in_use()
host.select_automatically()
answer["chosen"] = chosen
answer["back"] = host.vae_in_use(), worst(generate()[1], plain["txt2img"]), sd_vae.loaded_vae_file
again = decode_again(guard, other)
answer["by its own VAE"] = worst(SimpleNamespace(images=[image for image, _ in again]), with_other)
answer["afterwards"] = host.vae_in_use()
loaded_with_it = sdnext_webui.pipeline(sd_vae.load_vae("small", sd_vae.vae_dict["other.safetensors"]))
sd_models.model_data.sd_model, kept_model = loaded_with_it, sd_models.model_data.sd_model
for label, act in (
    ("automatic", host.select_automatically),
    ("own", lambda: decode_again(guard, guard.kept.items()[0])),
):
    try:
        act()
    except VAEGuardError as error:
        answer[f"not {label}"] = str(error)
sd_models.model_data.sd_model = kept_model
del sd_vae.vae_dict["other.safetensors"]
try:
    decode_again(guard, other)
except VAEGuardError as error:
    answer["its VAE is gone"] = str(error)

# What ours cannot stand in for is SD.Next's own, and that is said.
own_vae.register_to_config(norm_num_groups=16)
p, aside = generate()
answer["aside"] = worst(aside, plain["txt2img"]), list(p.comments), aside.infotexts[0].splitlines()[-1]
own_vae.register_to_config(norm_num_groups=32)
own_vae.enable_tiling()
p, tiling = generate()
answer["tiling"] = worst(tiling, plain["txt2img"]), list(p.comments)
own_vae.disable_tiling()


class ScriptPostprocessingForMainUI:
    args_from = args_to = None

    def title(self):
        return "Sharpen"


p.scripts = SimpleNamespace(alwayson_scripts=[ScriptPostprocessingForMainUI()])
answer["postprocessing"] = host.afterwards(p).not_repeated

# A model whose VAE we have no network for, and one without any.
told = []
guard.notices.tell_once = lambda key, text, **about: told.append(text)
model = sdnext_webui.pipeline(torch.nn.Identity())
answer["unknown"] = guard._vae(model), guard._vae(SimpleNamespace()), told, family_name(pipeline_vae.PipelineVAE(model))
answer["script"] = hasattr(panel.script_class(guard, host), "after_component")
host.unwrap()
patched = sum(len(found) for key, found in patches.originals.items() if "vae_guard" in str(key))
answer["own at last"] = patched, worst(generate()[1], plain["txt2img"])
print("\n" + json.dumps(answer))
