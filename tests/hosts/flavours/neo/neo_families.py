"""FLUX.2 in Forge Neo: the VAE object is given packed latents, and its network unpacks them."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from backend.patcher.vae import VAE
from modules import first_stage, shared


def without_forges():
    """What Forge has and Neo has not: asking for it is an AttributeError there."""
    for name in ("vae_path", "vae_dir", "ckpt_dir", "disable_nan_check"):
        delattr(shared.cmd_opts, name)
    shared.cmd_opts.vae_dirs = shared.cmd_opts.ckpt_dirs = []
    for name in (
        "auto_vae_precision",
        "auto_vae_precision_bfloat16",
        "add_vae_name_to_info",
        "add_vae_hash_to_info",
    ):
        shared.opts.data_labels.pop(name, None)
        shared.opts.data.pop(name, None)
    shared.opts.data["forge_preset"] = "klein"


class AutoencoderKLFlux2(first_stage.SDVAE):
    mugen = False

    def __init__(self):
        super().__init__(z_channels=32)
        self.bn = torch.nn.BatchNorm2d(128, eps=1e-4, affine=False).eval()
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 1.5)
        self.latent_format = SimpleNamespace(scale_factor=1.0)

    def process_out(self, x):
        return x

    def decode(self, z):
        deviation = torch.sqrt(self.bn.running_var.view(1, -1, 1, 1) + 1e-4)
        return super().decode(F.pixel_shuffle(z * deviation + self.bn.running_mean.view(1, -1, 1, 1), 2))

    def encode(self, x):
        z = first_stage.Posterior(self.encoder(x)).sample()
        return SimpleNamespace(sample=lambda: self.bn(F.pixel_unshuffle(z, 2)))


def engine(kind):
    """A checkpoint's model with such a VAE, whose weights were loaded in inference mode."""
    with torch.inference_mode():
        torch.manual_seed(5)
        network = AutoencoderKLFlux2().eval().requires_grad_(False)
        made = kind(VAE, True)
        vae = VAE(network)
        vae.latent_channels = 128
        vae.memory_used_decode = lambda shape, dtype: 4 * 2178 * shape[2] * shape[3] * 64 * dtype.itemsize
        made.forge_objects = SimpleNamespace(vae=vae)
    return made
