"""Which VAE files there are, which one is wanted, and putting one into the loaded model."""

import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from modules import devices, extra_networks, hashes, paths, script_callbacks, sd_hijack, sd_models, shared

vae_path = str(Path(paths.models_path, "VAE"))
vae_dict: dict = {}
base_vae = None
loaded_vae_file = None
checkpoint_info = None
unspecified = object()


def get_filename(filepath):
    return os.path.basename(filepath)


def get_loaded_vae_name():
    return get_filename(loaded_vae_file) if loaded_vae_file else None


def get_loaded_vae_hash():
    return hashes.sha256(loaded_vae_file, "vae")[:10] if loaded_vae_file else None


def refresh_vae_list():
    vae_dict.clear()
    found = [f for f in shared.walk_files(sd_models.model_path) if ".vae." in f]
    found += shared.walk_files(vae_path, [".ckpt", ".pt", ".safetensors"])
    vae_dict.update({get_filename(file): file for file in sorted(found, key=shared.natural_sort_key)})


@dataclass
class VaeResolution:
    vae: str = None
    source: str = None
    resolved: bool = True

    def tuple(self):
        return self.vae, self.source


def is_automatic():
    return shared.opts.sd_vae in {"Automatic", "auto"}


def resolve_vae(checkpoint_file):
    if shared.cmd_opts.vae_path is not None:
        return VaeResolution(shared.cmd_opts.vae_path, "from commandline argument")
    wanted = shared.opts.sd_vae
    if wanted not in ("Automatic", "auto") and shared.opts.sd_vae_overrides_per_model_preferences:
        return VaeResolution(vae_dict.get(wanted), "specified in settings", wanted in vae_dict)
    noted = extra_networks.get_user_metadata(checkpoint_file).get("vae")
    if noted in vae_dict:
        return VaeResolution(vae_dict[noted], "from user metadata")
    return VaeResolution(vae_dict.get(wanted), "specified in settings", wanted in vae_dict)


def store_base_vae(model):
    global base_vae, checkpoint_info
    if checkpoint_info is not model.sd_checkpoint_info:
        base_vae = deepcopy(model.first_stage_model.state_dict())
        checkpoint_info = model.sd_checkpoint_info


def delete_base_vae():
    global base_vae, checkpoint_info
    base_vae = checkpoint_info = None


def restore_base_vae(model):
    global loaded_vae_file
    if base_vae is not None and checkpoint_info is model.sd_checkpoint_info:
        print("Restoring base VAE")
        _load_vae_dict(model, base_vae)
        loaded_vae_file = None
    delete_base_vae()


def load_vae_dict(filename, map_location):
    weights = sd_models.read_state_dict(filename, map_location=map_location)
    return {key: value for key, value in weights.items() if not key.startswith("loss")}


def load_vae(model, vae_file=None, vae_source="from unknown source"):
    global loaded_vae_file
    if vae_file:
        assert os.path.isfile(vae_file), f"VAE {vae_source} doesn't exist: {vae_file}"
        print(f"Loading VAE weights {vae_source}: {vae_file}")
        store_base_vae(model)
        _load_vae_dict(model, load_vae_dict(vae_file, map_location=shared.weight_load_location))
        vae_dict.setdefault(get_filename(vae_file), vae_file)
    elif loaded_vae_file:
        restore_base_vae(model)
    loaded_vae_file = vae_file
    model.base_vae, model.loaded_vae_file = base_vae, loaded_vae_file


def _load_vae_dict(model, vae_dict_1):
    model.first_stage_model.load_state_dict(vae_dict_1)
    model.first_stage_model.to(devices.dtype_vae)


def clear_loaded_vae():
    global loaded_vae_file
    loaded_vae_file = None


def reload_vae_weights(sd_model=None, vae_file=unspecified):
    sd_model = sd_model or shared.sd_model
    vae_source = "from function argument"
    if vae_file is unspecified:
        vae_file, vae_source = resolve_vae(sd_model.sd_checkpoint_info.filename).tuple()
    if loaded_vae_file == vae_file:
        return None
    sd_hijack.model_hijack.undo_hijack(sd_model)
    load_vae(sd_model, vae_file, vae_source)
    sd_hijack.model_hijack.hijack(sd_model)
    script_callbacks.model_loaded_callback(sd_model)
    print("VAE weights loaded.")
    return sd_model
