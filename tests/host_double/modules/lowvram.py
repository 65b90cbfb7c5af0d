"""`--medvram`: one module at a time on the device. Here everything is on the CPU, but the VAE is wrapped alike."""

import torch

from modules import devices, shared

cpu = torch.device("cpu")
module_in_gpu = None


def is_needed(sd_model):
    return shared.cmd_opts.lowvram or shared.cmd_opts.medvram


def is_enabled(sd_model):
    return sd_model.lowvram


def send_everything_to_cpu():
    global module_in_gpu
    if module_in_gpu is not None:
        module_in_gpu.to(cpu)
    module_in_gpu = None


def apply(sd_model):
    sd_model.lowvram = False
    if is_needed(sd_model):
        setup_for_low_vram(sd_model, not shared.cmd_opts.lowvram)


def setup_for_low_vram(sd_model, use_medvram):
    def bring_in(module):
        global module_in_gpu
        if module_in_gpu is not module:
            send_everything_to_cpu()
            module.to(devices.device)
            module_in_gpu = module

    sd_model.lowvram = True
    vae = sd_model.first_stage_model
    encode, decode = vae.encode, vae.decode
    vae.encode = lambda x: (bring_in(vae), encode(x))[1]
    vae.decode = lambda z: (bring_in(vae), decode(z))[1]
    sd_model.model.register_forward_pre_hook(lambda module, _: bring_in(module))
