"""The host double made SD.Next: its modules beside the double's, and without what A1111 has by itself."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import modules
import modules.api
import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent / "more"
modules.__path__.append(str(HERE))
modules.api.__path__.append(str(HERE / "api"))

from modules import (  # noqa: E402
    images,
    paths,
    processing,
    processing_diffusers,
    sd_checkpoint,
    sd_models,
    sd_vae,
    shared,
)

OWN = "Diffusers/small"


@dataclass(repr=False)
class StableDiffusionProcessing:
    def __init__(self, prompt: str = "", seed: int = -1, steps: int = 2, width: int = 64, height: int = 48,
                 batch_size: int = 1, n_iter: int = 1, detailer_enabled: bool = False, vae_type: str = "Full",
                 hr_force: bool = False, hr_upscaler: str | None = None, color_correction_method: str | None = None,
                 enable_hr: bool = False, samples_save: bool | None = None, do_not_save_samples: bool = False,
                 init_images: list | None = None, overlay_images=None, paste_to=None, **kwargs):  # fmt: skip
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        vars(self).update(given)
        self.all_prompts = self.all_negative_prompts = self.all_seeds = self.all_subseeds = ()
        self.color_corrections, self.scripts, self.script_args = None, None, ()
        self.is_hr_pass = self.is_refiner_pass = False
        self.extra_generation_params, self.override_settings, self.comments = {}, {}, {}

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.scripts = None


class Txt2Img(StableDiffusionProcessing):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class Img2Img(Txt2Img):
    pass


@dataclass
class Correction:
    image: Image.Image


def create_infotext(p, all_prompts, all_seeds, all_subseeds, index=0, all_negative_prompts=None):
    entries = {"Steps": p.steps, "Seed": all_seeds[index], "Size": f"{p.width}x{p.height}", **p.extra_generation_params}
    return f"{all_prompts[index]}\n" + ", ".join(f"{name}: {value}" for name, value in entries.items())


def process_images(p):
    before = {name: getattr(shared.opts, name) for name in p.override_settings}
    try:
        _set(p.override_settings)
        return processing.process_images_inner(p)
    finally:
        _set(before)


def _set(settings):
    for name, value in settings.items():
        setattr(shared.opts, name, value)
        if name == "sd_vae":
            sd_vae.reload_vae_weights()


def process_images_inner(p):
    made, texts = [], []
    if not p.all_seeds:
        count = p.batch_size * p.n_iter
        p.all_prompts, p.all_negative_prompts = [p.prompt] * count, [""] * count
        p.all_seeds = p.all_subseeds = [p.seed + i for i in range(count)]
    for n in range(p.n_iter):
        one = slice(n * p.batch_size, (n + 1) * p.batch_size)
        p.prompts, p.negative_prompts = p.all_prompts[one], p.all_negative_prompts[one]
        p.seeds, p.subseeds = p.all_seeds[one], p.all_subseeds[one]
        for index, sample in enumerate(processing_diffusers.process_diffusers(p)):
            image = Image.fromarray(np.asarray(sample))
            if p.detailer_enabled:
                image = image.rotate(180)
            if p.color_corrections is not None:
                image = Image.blend(image, p.color_corrections[index].image.resize(image.size), 0.5)
            if p.overlay_images:
                image.paste(p.overlay_images[index], (0, 0), p.overlay_images[index])
            text = processing.create_infotext(p, p.prompts, p.seeds, p.subseeds, index=index)
            if p.samples_save and not p.do_not_save_samples:
                images.save_image(image, p.outpath_samples, "", p.seeds[index], p.prompts[index], info=text, p=p)
            made.append(image)
            texts.append(text)
    return SimpleNamespace(images=made, infotexts=texts, index_of_first_image=0)


def load_vae(model_file, vae_file=None, vae_source=None):
    vae = make_vae(int(Path(vae_file).read_text(encoding="utf-8")))  # raises where it is none, and is caught
    sd_vae.loaded_vae_file = Path(vae_file).name
    return vae


def reload_vae_weights(sd_model=None):
    """As SD.Next's: what it notes of the checkpoint's own is on the pipeline, and lost with it."""
    model = sd_model or sd_models.model_data.sd_model
    path, _ = sd_vae.resolve_vae(model.sd_checkpoint_info.filename)
    if path is None:
        if hasattr(model, "original_vae"):
            model.vae = model.original_vae
        return
    try:
        vae = sd_vae.load_vae(model.sd_checkpoint_info.filename, path)
    except ValueError as error:
        print(f"Load module: {error}")
        return
    if not hasattr(model, "original_vae"):
        model.original_vae = model.vae
    model.vae = vae


def resolve_vae(checkpoint_file):
    return sd_vae.vae_dict.get(shared.opts.sd_vae), "settings"


def make_vae(seed):
    import diffusers

    torch.manual_seed(seed)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4, sample_size=32,
    ).eval().requires_grad_(False)  # fmt: skip


def pipeline(vae):
    """A model of its own, as each task has one."""
    info = SimpleNamespace(name=OWN, title=OWN, filename=str(Path(paths.models_path, "small")), sha256=None)
    return SimpleNamespace(vae=vae, sd_checkpoint_info=info)


def become():
    for owner, names in (
        (processing, ("decode_latent_batch", "sd_samplers")),
        (shared.cmd_opts, ("vae_path", "vae_dir")),
    ):
        for name in names:
            delattr(owner, name)
    for name, value in {
        "StableDiffusionProcessing": StableDiffusionProcessing,
        "StableDiffusionProcessingTxt2Img": Txt2Img,
        "StableDiffusionProcessingImg2Img": Img2Img,
        "create_infotext": create_infotext,
        "process_images": process_images,
        "process_images_inner": process_images_inner,
        "setup_color_correction": Correction,
    }.items():
        setattr(processing, name, value)
    sd_vae.load_vae, sd_vae.reload_vae_weights, sd_vae.resolve_vae = load_vae, reload_vae_weights, resolve_vae
    paths.resolve_output_path = lambda base, own: str(Path(base, own))
    shared.api = SimpleNamespace(credentials={"a user": "a password"})
    shared.opts.data["vae_dir"] = str(Path(paths.models_path, "VAE"))
    sd_checkpoint.checkpoint_aliases[OWN] = None
    sd_models.model_data.sd_model = pipeline(make_vae(1))
