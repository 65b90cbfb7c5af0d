"""Checkpoints and the loaded model: a VAE with a scale factor; a token module stands for the UNet."""

import contextlib
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from modules import devices, errors, first_stage, lowvram, paths, script_callbacks, sd_hijack, shared

model_dir = "Stable-diffusion"
model_path = str(Path(paths.models_path, model_dir))
checkpoints_list: dict = {}
checkpoint_aliases: dict = {}
VAE_PREFIX = "first_stage_model."
SD3_WEIGHT = "model.diffusion_model.x_embedder.proj.weight"


class CheckpointInfo:
    def __init__(self, filename):
        from modules import hashes

        self.filename, self.name = str(filename), Path(filename).name
        self.name_for_extra = self.model_name = Path(filename).stem
        self.sha256 = hashes.sha256(filename, "checkpoint")
        self.shorthash = self.hash = self.sha256[:10]
        self.title = self.short_title = f"{self.name} [{self.shorthash}]"
        self.ids = [self.shorthash, self.sha256, self.name, self.name_for_extra, self.title]
        self.metadata: dict = {}

    def register(self):
        checkpoints_list[self.title] = self
        for alias in self.ids:
            checkpoint_aliases[alias] = self

    def calculate_shorthash(self):
        return self.shorthash


def checkpoint_tiles(use_short=False):
    return list(checkpoints_list)


def list_models():
    checkpoints_list.clear()
    checkpoint_aliases.clear()
    for file in shared.walk_files(model_path, [".safetensors", ".ckpt"]):
        if ".vae." not in file:
            CheckpointInfo(file).register()


def get_closet_checkpoint_match(search_string):
    return checkpoint_aliases.get(search_string)


def select_checkpoint():
    info = checkpoint_aliases.get(shared.opts.sd_model_checkpoint)
    if info is None:
        if not checkpoints_list:
            raise FileNotFoundError(f"No checkpoints found in {model_path}")
        info = next(iter(checkpoints_list.values()))
    return info


def read_state_dict(checkpoint_file, print_global_state=False, map_location=None):
    if Path(checkpoint_file).suffix.lower() == ".safetensors":
        return load_file(checkpoint_file, device=str(map_location or "cpu"))
    is_checked = not shared.cmd_opts.disable_safe_unpickle  # as the real one: with the flag, a pickle may do anything
    loaded = torch.load(checkpoint_file, map_location=map_location or "cpu", weights_only=is_checked)
    return loaded.get("state_dict", loaded)


class SkipWritingToConfig:
    """Within it a checkpoint that is loaded is not the one of the next generation."""

    skip = False

    def __enter__(self):
        self.previous, SkipWritingToConfig.skip = SkipWritingToConfig.skip, True

    def __exit__(self, *exc_info):
        SkipWritingToConfig.skip = self.previous


class Denoiser(nn.Module):
    """In the UNet's place: `conditioning_key` and a weight that stands for its memory."""

    conditioning_key = "crossattn"

    def __init__(self):
        super().__init__()
        self.diffusion_model = nn.Linear(8, 8)

    def forward(self, x):
        return x


class LatentDiffusion(nn.Module):
    scale_factor = 0.18215
    latent_channels = 4
    cond_stage_key = "txt"
    parameterization = "eps"
    is_sd1, is_sd2, is_sdxl, is_sd3, is_ssd, is_sdxl_inpaint = True, False, False, False, False, False
    lowvram = False

    def __init__(self):
        super().__init__()
        self.first_stage_model = first_stage.AutoencoderKL()
        self.model = Denoiser()
        self.cond_stage_model = nn.Module()
        self.cond_stage_model.transformer = nn.Linear(8, 8)

    @property
    def dtype(self):
        return next(self.model.parameters()).dtype

    @property
    def device(self):
        return next(self.model.parameters()).device

    def ema_scope(self, context=None):
        return contextlib.nullcontext()

    @torch.no_grad()
    def decode_first_stage(self, z, predict_cids=False, force_not_quantize=False):
        return self.first_stage_model.decode(z / self.scale_factor)

    @torch.no_grad()
    def encode_first_stage(self, x):
        return self.first_stage_model.encode(x)

    def get_first_stage_encoding(self, encoder_posterior):
        return self.scale_factor * encoder_posterior.sample()


class SD3LatentFormat:
    scale_factor = 1.5305
    shift_factor = 0.0609

    def process_in(self, latent):
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift_factor


class SD3Inferencer(nn.Module):
    """SD3: 16 latent channels, and no `scale_factor` of its own."""

    latent_channels = 16
    cond_stage_key = "txt"
    is_sd1, is_sd2, is_sdxl, is_sd3, is_ssd, is_sdxl_inpaint = False, False, False, True, False, False
    lowvram = False

    def __init__(self):
        super().__init__()
        self.first_stage_model = first_stage.SDVAE()
        self.latent_format = SD3LatentFormat()
        self.model = Denoiser()
        self.cond_stage_model = nn.Module()

    def ema_scope(self):
        return contextlib.nullcontext()

    @torch.no_grad()
    def decode_first_stage(self, latent):
        return self.first_stage_model.decode(self.latent_format.process_out(latent))

    @torch.no_grad()
    def encode_first_stage(self, image):
        return self.latent_format.process_in(self.first_stage_model.encode(image))

    def get_first_stage_encoding(self, x):
        return x


class SdModelData:
    def __init__(self):
        self.sd_model = None

    def get_sd_model(self):
        if self.sd_model is None:
            try:
                load_model()
            except Exception as error:
                errors.display(error, "loading stable diffusion model")
                print("Stable diffusion model failed to load", file=sys.stderr)
        return self.sd_model

    def set_sd_model(self, v, already_loaded=False):
        self.sd_model = v


model_data = SdModelData()


@contextlib.contextmanager
def loading_on_meta():
    """While a checkpoint is loaded, the host has a ``load_state_dict`` of its own, which knows less."""
    original = nn.Module.load_state_dict

    def load_state_dict(module, state_dict, strict=True):
        original(module, state_dict, strict=strict)

    nn.Module.load_state_dict = load_state_dict
    try:
        yield
    finally:
        nn.Module.load_state_dict = original


def load_model(checkpoint_info=None, already_loaded_state_dict=None):
    from modules import sd_vae

    info = checkpoint_info or select_checkpoint()
    state_dict = {k: v.float() for k, v in read_state_dict(info.filename).items()}
    model = SD3Inferencer() if SD3_WEIGHT in state_dict else LatentDiffusion()
    model.eval().requires_grad_(False)
    model.first_stage_model.load_state_dict(
        {k.removeprefix(VAE_PREFIX): v for k, v in state_dict.items() if k.startswith(VAE_PREFIX)}
    )
    model.first_stage_model.to(devices.dtype_vae)
    model.sd_checkpoint_info, model.sd_model_checkpoint, model.filename = info, info.filename, info.filename
    model.sd_model_hash, model.used_config = info.shorthash, None
    if not SkipWritingToConfig.skip:
        shared.opts.data["sd_model_checkpoint"] = info.title
    sd_vae.delete_base_vae()
    sd_vae.clear_loaded_vae()
    with loading_on_meta():
        sd_vae.load_vae(model, *sd_vae.resolve_vae(info.filename).tuple())
    lowvram.apply(model)
    sd_hijack.model_hijack.hijack(model)
    model_data.set_sd_model(model)
    script_callbacks.model_loaded_callback(model)
    print("Model loaded in 0.0s.", flush=True)
    return model


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    info = info or select_checkpoint()
    if model_data.sd_model is not None and model_data.sd_model.sd_checkpoint_info is info and not forced_reload:
        return model_data.sd_model
    return load_model(info)


def unload_model_weights(sd_model=None, info=None):
    model_data.set_sd_model(None)


def apply_token_merging(sd_model, token_merging_ratio):
    pass
