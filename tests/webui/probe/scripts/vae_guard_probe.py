"""A second extension, only for the tests: lets them look into the host, whichever it is, over its own routes."""

import contextlib
import copy
import gc
import hashlib
import os
import sys
import threading
import time

import gradio as gr
import psutil
import torch
from modules import devices, infotext_utils, patches, processing, script_callbacks, scripts, sd_vae, shared
from PIL import ImageOps

LOADED = time.time_ns()


class Distances(scripts.Script):
    """Every generation's answer says how far each decode and encode in it was from the same one in float64."""

    def title(self):
        return "VAE Guard probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        _distances.clear()

    def postprocess(self, p, processed, *args):
        processed.extra_generation_params = {**processed.extra_generation_params, "distances": [*_distances]}


class Frame(scripts.Script):
    """Acts on pictures after their decode, as many extensions do."""

    def title(self):
        return "Probe's frame"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, label="A white edge")]

    def postprocess_image(self, p, pp, is_on, *args):
        if is_on:
            size = pp.image.size
            pp.image = ImageOps.expand(pp.image.crop((4, 4, size[0] - 4, size[1] - 4)), 4, "white")


_distances = []  # since the last generation began: what was done, and how far off it was
_measuring = [True]
_encoding = []  # the encoder's input and output, until quant_conv is done too
_truths = {}  # float64 is slow, and many tests make the same picture
MOST_TRUTHS = 40


def measure(module, inputs, output):
    """After each call of any module: was it the VAE's decoder or encoder? Whoever computed, the truth is the host's
    own network on the same input in float64, so that what went before does not count."""
    if not _measuring[0]:
        return
    if {"conv_in", "mid", "norm_out", "conv_out"} <= module._modules.keys():
        vae = network()
        if module is vae.encoder and "quant_conv" in vae._modules:
            _encoding[:] = [inputs[0], output]
        elif module is vae.encoder or module is vae.decoder:
            note("encode" if module is vae.encoder else "decode", output, in_float64(module, inputs[0]))
    elif _encoding and inputs and inputs[0] is _encoding[1]:
        vae = network()
        note("encode", output, in_float64(vae.quant_conv, in_float64(vae.encoder, _encoding[0])))
        _encoding.clear()


def note(operation, output, wanted):
    """The root of the mean square: it hardly depends on a single unlucky number, as the largest difference does."""
    _distances.append((operation, float((output.double() - wanted).square().mean().sqrt())))


def in_float64(module, x):
    changed = [(len(layer._forward_hooks), "_conv_forward" in vars(layer)) for layer in module.modules()]
    known = hashlib.sha256(f"{module} {changed}".encode())  # the first tells how it pads, and what class layers are of
    for tensor in (x, *module.parameters()):
        known.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    key = known.digest()
    if key not in _truths:
        exact = copy.deepcopy(module).double()
        exact.__dict__.pop("forward", None)  # that is the extension's
        with torch.no_grad(), devices.without_autocast():
            result = type(exact).forward(exact, x.double()).cpu().numpy()  # no tensor: the soak counts those
        if len(_truths) == MOST_TRUTHS:
            _truths.clear()
        _truths[key] = result
    return torch.from_numpy(_truths[key]).to(x.device)


def switch_measuring(on: bool):
    _measuring[0] = on
    _truths.clear()


script_callbacks.on_script_unloaded(torch.nn.modules.module.register_module_forward_hook(measure).remove)


def depth(function):
    """How many wrappers lie around a function."""
    count = 0
    while hasattr(function, "__wrapped__"):
        function, count = function.__wrapped__, count + 1
    return count


def state():
    applied = [
        f"{getattr(owner, '__name__', owner)}.{field}"
        for key, originals in patches.originals.items()
        for owner, field in originals
        if "vae_guard" in str(key)
    ]
    return {
        "loaded": str(LOADED),
        "patches": sorted(applied),
        "depth": depth(processing.decode_latent_batch),
        "model": shared.sd_model is not None,
        "vae": next(iter(getattr(shared.opts, "forge_additional_modules", ())), sd_vae.loaded_vae_file),
    }


def axes():
    modules = [data.module for data in scripts.scripts_data if hasattr(data.module, "axis_options")]
    return [option.label for module in modules[:1] for option in module.axis_options]


def options():
    """All settings. The host's own route leaves out those of an extension that was not there when it started."""
    labels = shared.opts.data_labels.items()
    defaults = {name: info.default for name, info in labels if not getattr(info, "do_not_save", False)}
    return {**defaults, **shared.opts.data}


def resources():
    """What a process that leaks has more and more of."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
    return {
        "rss": psutil.Process().memory_info().rss,
        "tensors": len(tensors),
        "files": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
        "threads": threading.active_count(),
        "depth": depth(processing.decode_latent_batch),
    }


def network():
    """The VAE's, wherever the host keeps it."""
    forge = getattr(shared.sd_model, "forge_objects", None)
    return forge.vae.first_stage_model if forge else shared.sd_model.first_stage_model


_whole = []


def break_vae():
    """Make the loaded VAE give NaN, whoever runs it."""
    weight = last_weight()
    _whole.append(weight.detach().clone())
    weight.data.fill_(float("nan"))


def mend_vae():
    last_weight().data.copy_(_whole.pop())


def last_weight():
    return [layer.weight for layer in network().decoder.modules() if hasattr(layer, "weight")][-1]


@contextlib.contextmanager
def cast(dtype):
    """The loaded VAE in another dtype, after what is done to it in between."""
    vae = network()
    _whole.append([(tensor, tensor.data) for tensor in vae.parameters()])
    with as_loaded(vae):
        yield vae
        vae.to(dtype)
    note_dtype(dtype)


def halve_vae():
    """In fp16, and its numbers too large for that: in fp32 it gives the same picture as before."""
    with cast(torch.float16) as vae:
        vae.decoder.conv_in.weight.data, vae.decoder.conv_in.bias.data = (
            tensor.data * 2.0**14 for tensor in (vae.decoder.conv_in.weight, vae.decoder.conv_in.bias)
        )


def to_bfloat16():
    """As Forge loads it on newer cards."""
    with cast(torch.bfloat16):
        pass


def as_loaded(vae):
    """Forge loads its weights in inference mode; what is made of them outside of it is neither fish nor flesh."""
    return torch.inference_mode(next(vae.parameters()).is_inference())


def note_dtype(dtype):
    devices.dtype_vae = dtype
    if getattr(shared.sd_model, "forge_objects", None):
        shared.sd_model.forge_objects.vae.vae_dtype = dtype


def restore_vae():
    note_dtype(torch.float32)
    vae = network()
    with as_loaded(vae):
        vae.float()  # a LightningModule notes its dtype
        for tensor, data in _whole.pop():
            tensor.data = data


def vae_dtypes():
    vae = network()
    return sorted({str(tensor.dtype) for tensor in vae.parameters()} | {str(devices.dtype_vae)})


def note_checkpoint():
    """As reForge and Forge Classic do with each generation of a checkpoint that is loaded already."""
    sd_vae.base_vae = getattr(shared.sd_model, "base_vae", None)
    sd_vae.checkpoint_info = shared.sd_model.sd_checkpoint_info


def nan_check(on: bool):
    shared.cmd_opts.disable_nan_check = not on


def fail(times: int = 1):
    """The next so many decodes or encodes that the extension runs have a bug."""
    forward = sys.modules["vae_lib.guard.forward"].Forward
    whole = getattr(forward._outcome, "whole", forward._outcome)
    left = [times]

    def outcome(*args):
        if left[0] == 0:
            return whole(*args)
        left[0] -= 1
        raise ZeroDivisionError("made by the probe")

    outcome.whole = whole
    forward._outcome = outcome


_quick = []


def slow(seconds: float):
    """Every step of a decode takes so long, as on a machine that is slow or with a picture that is large."""
    host = sys.modules["vae_lib.hosts.webui_family"].WebUIFamily
    if not _quick:
        _quick.append(host.show_progress_text)

    def show_progress_text(self, text):
        _quick[0](self, text)
        time.sleep(seconds)

    host.show_progress_text = show_progress_text


def half_problem():
    """Why this PyTorch cannot compute in half precision here; empty if it can (2.1 cannot on a CPU)."""
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 3, 3).half())
    except RuntimeError as error:
        return str(error)
    return ""


def give_cores_to_soft_inpainting():
    """Forge's divides its work among six processes, or, on up to six cores, does none: the original stays whole."""
    for data in scripts.scripts_data:
        if hasattr(data.module, "apply_adaptive_masks") and hasattr(data.module, "cpu_count"):
            data.module.cpu_count = lambda: 7


def add_routes(demo, app):
    give_cores_to_soft_inpainting()
    app.add_api_route("/probe/distances", lambda: _distances, methods=["GET"])
    app.add_api_route("/probe/measuring", switch_measuring, methods=["POST"])
    app.add_api_route("/probe/half-problem", half_problem, methods=["GET"])
    app.add_api_route("/probe/halve", halve_vae, methods=["POST"])
    app.add_api_route("/probe/bfloat16", to_bfloat16, methods=["POST"])
    app.add_api_route("/probe/restore", restore_vae, methods=["POST"])
    app.add_api_route("/probe/dtypes", vae_dtypes, methods=["GET"])
    app.add_api_route("/probe/note-checkpoint", note_checkpoint, methods=["POST"])
    app.add_api_route("/probe/nan-check", nan_check, methods=["POST"])
    app.add_api_route("/probe/fail", fail, methods=["POST"])
    app.add_api_route("/probe/slow", slow, methods=["POST"])
    app.add_api_route("/probe/resources", resources, methods=["GET"])
    app.add_api_route("/probe/break", break_vae, methods=["POST"])
    app.add_api_route("/probe/mend", mend_vae, methods=["POST"])
    app.add_api_route("/probe/state", state, methods=["GET"])
    app.add_api_route("/probe/axes", axes, methods=["GET"])
    app.add_api_route("/probe/options", options, methods=["GET"])
    app.add_api_route("/probe/reload", shared.state.request_restart, methods=["POST"])
    app.add_api_route("/probe/parse", parse, methods=["POST"])


def parse(body: dict):
    return infotext_utils.parse_generation_parameters(body["infotext"])


script_callbacks.on_app_started(add_routes)
