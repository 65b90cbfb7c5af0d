"""Settings, state and the loaded model: what everything else looks at."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import torch

from modules import options, shared_cmd_options, shared_items, shared_state
from modules.options import OptionHTML, OptionInfo, options_section  # noqa: F401
from modules.paths_internal import data_path, extensions_dir, models_path, script_path  # noqa: F401

cmd_opts, parser = shared_cmd_options.cmd_opts, shared_cmd_options.parser
config_filename = cmd_opts.ui_settings_file
state = shared_state.State()
demo: gr.Blocks = None
device = torch.device("cpu")
weight_load_location = None
parallel_processing_allowed = True
settings_components: dict = {}
tab_names: list = []
hide_dirs = {"visible": True}
progress_print_out = sys.stdout
gradio_theme = gr.themes.Base()
mem_mon = None
face_restorers: list = []
sd_upscalers = [SimpleNamespace(name=name, scaler=None) for name in ("None", "Lanczos", "Nearest")]
latent_upscale_default_mode = "Latent"
latent_upscale_modes = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (nearest)": {"mode": "nearest", "antialias": False},
}
total_tqdm = SimpleNamespace(clear=lambda: None, update=lambda: None, updateTotal=lambda total: None)
prompt_styles = SimpleNamespace(
    styles={},
    apply_styles_to_prompt=lambda prompt, styles: prompt,
    apply_negative_styles_to_prompt=lambda prompt, styles: prompt,
)

list_checkpoint_tiles = shared_items.list_checkpoint_tiles
refresh_checkpoints = shared_items.refresh_checkpoints

options.categories.register_category("saving", "Saving images")
options.categories.register_category("sd", "Stable Diffusion")
options.categories.register_category("ui", "User Interface")
options.categories.register_category("system", "System")


def sd_vae_choices():
    return {"choices": shared_items.sd_vae_items()}


def checkpoint_choices():
    return {"choices": list_checkpoint_tiles()}


METHODS = {"choices": ["Full", "TAESD"]}
options_templates: dict = {}
options_templates |= options_section(
    ("saving-images", "Saving images/grids", "saving"),
    {
        "samples_save": OptionInfo(True, "Always save all generated images"),
        "samples_format": OptionInfo("png", "File format for images"),
        "enable_pnginfo": OptionInfo(True, "Write infotext to metadata of the generated image"),
        "grid_save": OptionInfo(False, "Always save all generated image grids"),
        "grid_format": OptionInfo("png", "File format for grids"),
        "grid_extended_filename": OptionInfo(False, "Add extended info to filename when saving grid"),
        "outdir_grids": OptionInfo("", "Output directory for grids"),
        "outdir_txt2img_grids": OptionInfo("outputs/txt2img-grids", "Output directory for txt2img grids"),
        "outdir_img2img_grids": OptionInfo("outputs/img2img-grids", "Output directory for img2img grids"),
        "return_grid": OptionInfo(True, "Show grid in results"),
        "outdir_samples": OptionInfo("", "Output directory for images"),
        "outdir_txt2img_samples": OptionInfo("outputs/txt2img-images", "Output directory for txt2img images"),
        "outdir_img2img_samples": OptionInfo("outputs/img2img-images", "Output directory for img2img images"),
    },
)
options_templates |= options_section(
    ("sd", "Stable Diffusion", "sd"),
    {
        "sd_model_checkpoint": OptionInfo(
            None, "Stable Diffusion checkpoint", gr.Dropdown, checkpoint_choices, refresh=refresh_checkpoints
        ),
        "CLIP_stop_at_last_layers": OptionInfo(1, "Clip skip", gr.Slider, {"minimum": 1, "maximum": 12, "step": 1}),
        "tiling": OptionInfo(False, "Tiling", infotext="Tiling"),
    },
)
options_templates |= options_section(
    ("vae", "VAE", "sd"),
    {
        "sd_vae_checkpoint_cache": OptionInfo(0, "VAE Checkpoints to cache in RAM", gr.Number),
        "sd_vae": OptionInfo(
            "Automatic",
            "SD VAE",
            gr.Dropdown,
            sd_vae_choices,
            refresh=shared_items.refresh_vae_list,
            infotext="VAE",
        ),
        "sd_vae_overrides_per_model_preferences": OptionInfo(True, "Selected VAE overrides per-model preferences"),
        "auto_vae_precision_bfloat16": OptionInfo(False, "Automatically convert VAE to bfloat16"),
        "auto_vae_precision": OptionInfo(True, "Automatically revert VAE to 32-bit floats"),
        "sd_vae_encode_method": OptionInfo("Full", "VAE type for encode", gr.Radio, METHODS, infotext="VAE Encoder"),
        "sd_vae_decode_method": OptionInfo("Full", "VAE type for decode", gr.Radio, METHODS, infotext="VAE Decoder"),
    },
)
options_templates |= options_section(
    ("img2img", "img2img", "sd"),
    {
        "inpainting_mask_weight": OptionInfo(1.0, "Inpainting conditioning mask strength"),
        "initial_noise_multiplier": OptionInfo(1.0, "Noise multiplier for img2img"),
        "return_mask": OptionInfo(False, "Include the mask in results"),
        "overlay_inpaint": OptionInfo(True, "Overlay original for inpaint"),
        "img2img_color_correction": OptionInfo(False, "Apply color correction to match original colors"),
        "add_vae_name_to_info": OptionInfo(True, "Add VAE name to infotext"),
        "add_vae_hash_to_info": OptionInfo(True, "Add VAE hash to infotext"),
    },
)
options_templates |= options_section(
    ("ui", "Live previews", "ui"),
    {
        "live_previews_enable": OptionInfo(True, "Show live previews of the created image"),
        "show_progress_type": OptionInfo("Approx NN", "Live preview method"),
        "live_preview_fast_interrupt": OptionInfo(False, "Return image with chosen live preview method on interrupt"),
        "infotext_skip_pasting": OptionInfo([], "Disregard fields from pasted infotext"),
    },
)
options_templates |= options_section(
    (None, "Hidden options"),
    {
        "quicksettings_list": OptionInfo([], "Quicksettings list"),
        "disabled_extensions": OptionInfo([], "Disable these extensions"),
        "disable_all_extensions": OptionInfo("none", "Disable all extensions"),
        "sd_checkpoint_hash": OptionInfo("", "SHA256 hash of the current checkpoint"),
    },
)
opts = options.Options(options_templates)
if Path(config_filename).exists():
    opts.load(config_filename)


def natural_sort_key(text):
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", str(text))]


def listfiles(dirname):
    folder = Path(dirname)
    return sorted((str(p) for p in folder.iterdir() if p.is_file()), key=natural_sort_key) if folder.is_dir() else []


def walk_files(path, allowed_extensions=None):
    for file in sorted(Path(path).rglob("*"), key=natural_sort_key):
        if file.is_file() and (allowed_extensions is None or file.suffix.lower() in allowed_extensions):
            yield str(file)


class _Shared(type(sys)):
    """`shared.sd_model` loads the checkpoint when it is first asked for, as in the host."""

    @property
    def sd_model(self):
        from modules import sd_models

        return sd_models.model_data.get_sd_model()

    @sd_model.setter
    def sd_model(self, value):
        from modules import sd_models

        sd_models.model_data.set_sd_model(value)


sys.modules[__name__].__class__ = _Shared
