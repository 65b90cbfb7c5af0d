import contextlib

import torch

from modules import shared

cpu = torch.device("cpu")
device = device_interrogate = device_gfpgan = device_esrgan = device_codeformer = cpu
dtype = dtype_vae = dtype_unet = dtype_inference = torch.float32
fp8 = force_fp16 = unet_needs_upcast = False


class NansException(Exception):
    pass


def get_optimal_device_name():
    return "cpu"


def get_optimal_device():
    return cpu


def get_device_for(task):
    return cpu


def has_mps():
    return False


def torch_gc():
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def cond_cast_float(value):
    return value


def autocast(disable=False):
    return contextlib.nullcontext()


def without_autocast(disable=False):
    return contextlib.nullcontext()


def test_for_nans(x, where):
    """Raises NansException by looking at one element only, which is what the host does."""
    if shared.cmd_opts.disable_nan_check or not torch.isnan(x[(0,) * x.ndim]):
        return
    part = {"unet": " in Unet", "vae": " in VAE"}.get(where, "")
    raise NansException(f"A tensor with NaNs was produced{part}. Use --disable-nan-check to disable this check.")
