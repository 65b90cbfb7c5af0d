"""Looks into the memory manager of Forge and its kin, and has it load the VAE in part; does nothing in A1111."""

import importlib
import importlib.util
import inspect

from modules import script_callbacks, sd_models, shared

_PLACES = ("backend.memory_management", "ldm_patched.modules.model_management")


def found():
    for place in _PLACES:
        try:
            return importlib.import_module(place)
        except ImportError:
            pass
    return None


management = found()
asked = []  # bytes, since it was last looked at


def watch():
    own = management.load_models_gpu

    def load_models_gpu(models, memory_required=0, *args, **kwargs):
        objects = getattr(sd_models.model_data.sd_model, "forge_objects", None)  # asking for more would load it
        if objects is not None and any(model is objects.vae.patcher for model in models):
            asked.append(memory_required)
        return own(models, memory_required, *args, **kwargs)

    management.load_models_gpu = load_models_gpu
    script_callbacks.on_script_unloaded(lambda: setattr(management, "load_models_gpu", own))


def vae():
    return shared.sd_model.forge_objects.vae


def tell():
    told, asked[:] = [*asked], []
    return told


def load_in_part():
    """As where only half of its weights fit on the device: the rest is cast to it as the layers compute."""
    management.unload_all_models()
    size = sum(weight.numel() * weight.element_size() for weight in vae().first_stage_model.parameters())
    makes = management.LoadedModel
    loaded = makes(*([vae().patcher, 0][: len(inspect.signature(makes).parameters)]))
    loaded.model_load(size // 2)
    management.current_loaded_models.insert(0, loaded)
    casting = ("parameters_manual_cast", "ldm_patched_cast_weights")
    layers = [layer for layer in vae().first_stage_model.modules() if any(hasattr(layer, name) for name in casting)]
    return [sum(any(getattr(layer, name, False) for name in casting) for layer in layers), len(layers)]


_ran = []  # positions of the latents that the VAE's own decoder was given


def run_out(above: int):
    """The VAE's own decoder runs out of memory with latents of more positions than that. Tells what it was given."""
    kind = type(vae().first_stage_model.decoder)
    own = getattr(kind.forward, "own", kind.forward)

    def forward(self, z, *args, **kwargs):
        _ran.append(z.shape[-2] * z.shape[-1])
        if _ran[-1] > above:
            raise management.OOM_EXCEPTION("made by the probe: out of memory")
        return own(self, z, *args, **kwargs)

    forward.own = own
    kind.forward = forward
    ran, _ran[:] = [*_ran], []
    return ran


def add_routes(demo, app):
    app.add_api_route("/probe/memory-asked", tell, methods=["GET"])
    app.add_api_route("/probe/load-in-part", load_in_part, methods=["POST"])
    app.add_api_route("/probe/run-out", run_out, methods=["POST"])
    app.add_api_route("/probe/load-again", management.unload_all_models, methods=["POST"])


if management is not None:
    watch()
    script_callbacks.on_app_started(add_routes)
