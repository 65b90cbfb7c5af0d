"""Decode and encode in a fork's own way, with and without VAE Guard; its packages are the stand-ins in ``flavours``.

Run by ``test_flavours.py`` in a process of its own. Prints one JSON object.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.argv = ["webui.py"]
from modules import first_stage, processing, sd_models, shared
from modules_forge import main_thread

from tests.networks.small import taesd
from vae_lib import hosts
from vae_lib.guard import Guard, Request
from vae_lib.guard.forward import Forward
from vae_lib.guard.host import TELLS_MORE, family_name
from vae_lib.hosts.unknown import forge_version

is_neo = forge_version() == "neo"
if is_neo:
    import neo_families
    import neo_wan

    neo_families.without_forges()

SCALE = 0.18215


def belong_to(package):
    """The layers are the double's; their host knows them as its own."""
    for layer in vars(first_stage).values():
        if isinstance(layer, type) and layer.__module__ == first_stage.__name__:
            layer.__module__ = package


def network():
    """Weights that were loaded in inference mode, as Forge's are."""
    with torch.inference_mode():
        torch.manual_seed(1)
        made = first_stage.AutoencoderKL().eval().requires_grad_(False)
        if is_neo:
            made.latent_format = SimpleNamespace(scale_factor=SCALE)
        else:
            made.scaling_factor, made.shift_factor = SCALE, 0.0
        made.process_in, made.process_out = lambda x: x * SCALE, lambda x: x / SCALE
        return made


class Engine:
    """The loaded checkpoint's model."""

    sd_checkpoint_info = SimpleNamespace(name_for_extra="small", sha256="abc", title="small")
    latent_channels, is_sd1 = 4, True
    filename = ""

    def __init__(self, vae_class, is_forge):
        made = network()
        latent_format = SimpleNamespace(scale_factor=SCALE, process_in=made.process_in, process_out=made.process_out)
        unet = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(latent_format=latent_format)))
        self.forge_objects = SimpleNamespace(vae=vae_class(made), unet=unet)
        self.first_stage_model = None if is_forge else made

    @torch.inference_mode()
    def decode_first_stage(self, x):
        vae = self.forge_objects.vae
        return vae.decode(vae.first_stage_model.process_out(x)).movedim(-1, 1) * 2.0 - 1.0


host = hosts.choose()
is_forge = type(host).__module__.endswith((".forge", ".neo"))
if is_forge:
    from backend import memory_management as management
    from backend.patcher.vae import VAE

    belong_to("backend.nn.vae")
else:
    from ldm_patched.modules import model_management as management
    from ldm_patched.modules.sd import VAE

engine = Engine(VAE, is_forge)
sd_models.model_data.sd_model = engine
latents = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(2))
pixels = torch.rand(1, 32, 40, 3, generator=torch.Generator().manual_seed(3))


def decode():
    pictures = processing.decode_latent_batch(engine, latents, target_device=torch.device("cpu"))
    return torch.stack(list(pictures))


def encode():
    torch.manual_seed(4)
    with torch.inference_mode():
        return engine.forge_objects.vae.encode(pixels)  # as built-in extensions do


own, own_latents, plain = decode(), encode(), list(management.asked)
guard = Guard(host)
host.wrap(guard)
p = SimpleNamespace(extra_generation_params={}, comment=lambda text: None)
management.asked.clear()
management.VAE_ALWAYS_TILED = True
with guard.generations.running(p, Request(False, "Tiled")) as current:
    ours, our_latents = decode(), encode()
answer = {
    "host": type(host).__module__, "pictures": float((ours - own).abs().max()),
    "latents": float((our_latents - own_latents).abs().max()), "asked": [list(management.asked), plain],
    "noted": dict(p.extra_generation_params),
    "records": [record.operation.value for record in current.records],
    "always_tiled": management.VAE_ALWAYS_TILED, "family": family_name(host.vae()),
    "factors": [host.vae().space.scale, host.vae().space.shift],
}  # fmt: skip

# Ours has a bug, and the host's own decode runs out of memory: its own tiles come out, under no name of ours.
outcome, plain_decode = Forward._outcome, first_stage.Decoder.forward


def bug(*args):
    raise ZeroDivisionError("made by the test")


def no_memory(self, z):
    if z.shape[3] == latents.shape[3]:
        raise management.OutOfMemory("out of memory")
    return plain_decode(self, z)


Forward._outcome, first_stage.Decoder.forward = bug, no_memory
p.extra_generation_params.clear()
management.asked.clear()
with guard.generations.running(p, Request(False, "Tiled")):
    tiles = decode()
Forward._outcome, first_stage.Decoder.forward = outcome, plain_decode
answer |= {
    "tiles": list(tiles.shape),
    "noted then": p.extra_generation_params,
    "asked then": list(management.asked),
}

# A choice in the tab shows in the page's own dropdown, among what was chosen beside it.
if is_forge:
    from modules_forge import main_entry

    vae, encoder = host.folders().vae / "vae.safetensors", "/models/text_encoder/clip.safetensors"
    main_entry.module_list |= {path.name: str(path) for path in (vae, Path(encoder))}
    shared.opts.data["forge_additional_modules"] = [encoder]
    before = host.vae_in_use()
    host.select_vae(vae.name)
    answer["chosen"] = [before, host.vae_in_use(), host.vae_setting()]
    labels = ("VAE / Text Encoder", "Hires VAE / Text Encoder", "Checkpoint")
    answer["dropdowns"] = [label for label in labels if host.is_vae_dropdown(SimpleNamespace(label=label), "")]


if is_neo:
    answer["presets"] = shared.opts.data["forge_additional_modules_klein"]
    klein = neo_families.engine(Engine)
    folder = host.folders().taesd
    folder.mkdir(parents=True)
    tiny = taesd(32)
    torch.save({key[8:]: value for key, value in tiny.state_dict().items() if key.startswith("decoder.")},
               folder / "taef2_decoder.pth")  # fmt: skip
    packed = torch.randn(2, 128, 3, 4, generator=torch.Generator().manual_seed(6))

    quiet = SimpleNamespace(extra_generation_params={}, comment=lambda text: None)

    def pictures_by(decode_by):
        management.asked.clear()
        with guard.generations.running(quiet, Request(False, decode_by)):
            made = processing.decode_latent_batch(klein, packed, target_device=torch.device("cpu"))
        return torch.stack(list(made))

    host.unwrap()
    own_packed = pictures_by("Full")
    plain_packed = list(management.asked)
    with torch.inference_mode():
        torch.manual_seed(4)
        own_encoded = klein.forge_objects.vae.encode(pixels[:, :, :32])
    host.wrap(guard)
    exact = pictures_by("Tiled")
    asked_packed = list(management.asked)
    approximate = pictures_by("TAESD")
    with torch.inference_mode():
        torch.manual_seed(4)
        encoded = klein.forge_objects.vae.encode(pixels[:, :, :32])
    expected = tiny.decode(torch.nn.functional.pixel_shuffle(packed, 2)).clamp(-1, 1)
    vae = host.vae(klein)
    answer["packed"] = {
        "pictures": float((exact - own_packed).abs().max()),
        "encoded": float((encoded - own_encoded).abs().max()),
        "taesd": float((approximate - expected).abs().max()),
        "asked": [asked_packed, plain_packed],
        "family": family_name(vae),
        "kept": [item.size for item in guard.kept.items()][:1],
    }

    wan = neo_wan.engine(Engine)
    told: list[str] = []
    guard.notices.tell_once = lambda key, text, **about: told.append(text)

    def frames_by(decode_by, times):
        management.asked.clear()
        latents = torch.randn(2, 16, times, 6, 8, generator=torch.Generator().manual_seed(9))
        with guard.generations.running(quiet, Request(False, decode_by)):
            made = processing.decode_latent_batch(wan, latents, target_device=torch.device("cpu"))
        return torch.stack(list(made)), list(management.asked)

    def encoded_by_wan(given=pixels):
        with torch.inference_mode():
            return wan.forge_objects.vae.encode(given)

    host.unwrap()
    frames_of_video = torch.rand(5, *pixels.shape[1:], generator=torch.Generator().manual_seed(10))
    own_frames, plain_frames = frames_by("Full", 1)
    own_video, plain_video = frames_by("Full", 3)
    own_first, own_latents = encoded_by_wan(), encoded_by_wan(frames_of_video)
    host.wrap(guard)
    frames, asked_frames = frames_by("Tiled", 1)
    kept = guard.kept.items()[0]
    sd_models.model_data.sd_model = wan
    given_back = host.as_sampled(kept.latents().tensor)
    sd_models.model_data.sd_model = engine
    count = len(guard.kept.items())
    video, asked_video = frames_by("Tiled", 3)
    by_taesd, _ = frames_by("TAESD", 3)
    with guard.guarding(wan.forge_objects.vae):
        latents_of_video = encoded_by_wan(frames_of_video)
    left = list((guard.kept.folder / "videos").glob("*"))
    error = ""
    wan.forge_objects.vae.decode = lambda samples: 1 / 0
    try:
        frames_by("Tiled", 3)
    except ZeroDivisionError as raised:
        error = str(raised)
    del wan.forge_objects.vae.decode
    answer["frames"] = {
        "pictures": float((frames - own_frames).abs().max()),
        "shape": list(frames.shape),
        "encoded": float((encoded_by_wan() - own_first).abs().max()),
        "asked": [asked_frames, plain_frames],
        "route": kept.route,
        "kept": [list(kept.shape), list(given_back.shape)],
        "a kept picture": float((kept.space.for_vae(kept.latents().tensor)[:, :, None]
                                 - wan.forge_objects.vae.first_stage_model.process_out(given_back)).abs().max()),
        "video": [list(video.shape), float((video - own_video).abs().max())],
        "by TAESD": float((by_taesd - own_video).abs().max()),
        "latents": [list(latents_of_video.shape), float((latents_of_video - own_latents).abs().max())],
        "asked for the video": [asked_video, plain_video],
        "told": told,
        "kept of the video": [count, len(guard.kept.items()), len(left)],
        "failed": [error, [str(path) for path in (guard.kept.folder / "videos").glob("*")]],
    }  # fmt: skip


class Dropped(Exception):
    pass


def fail(error):
    raise error


errors = [Dropped("a WebUI's"), Dropped("ours")]
setattr(errors[1], TELLS_MORE, True)
answer["errors"] = []
for error in errors:
    try:
        answer["errors"].append(main_thread.run_and_wait_result(fail, error))
    except Dropped as raised:
        answer["errors"].append(str(raised))
host.unwrap()
answer["own again"] = bool(torch.equal(decode(), own))
shared.opts.data.pop("forge_additional_modules", None)
print("\n" + json.dumps(answer))
