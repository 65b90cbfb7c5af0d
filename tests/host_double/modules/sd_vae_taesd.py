"""The host's tiny autoencoder, from `models/VAE-taesd`. Nothing is downloaded here."""

from pathlib import Path

import torch
from torch import nn

from modules import devices, paths_internal, shared

sd_vae_taesd_models: dict = {}


def conv(inputs, outputs, **kwargs):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        self.skip, self.fuse = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.fuse(self.conv(x) + self.skip(x))


def blocks(count):
    return [Block(64) for _ in range(count)]


def decoder(latent_channels=4):
    ups = [layer for _ in range(3) for layer in (*blocks(3), nn.Upsample(scale_factor=2), conv(64, 64, bias=False))]
    return nn.Sequential(Clamp(), conv(latent_channels, 64), nn.ReLU(), *ups, Block(64), conv(64, 3))


def encoder(latent_channels=4):
    downs = [layer for _ in range(3) for layer in (conv(64, 64, stride=2, bias=False), *blocks(3))]
    return nn.Sequential(conv(3, 64), Block(64), *downs, conv(64, latent_channels))


def _model(part, build):
    name = f"{'taesdxl' if shared.sd_model.is_sdxl else 'taesd'}_{part}.pth"
    if name not in sd_vae_taesd_models:
        path = Path(paths_internal.models_path, "VAE-taesd", name)
        if not path.exists():
            raise FileNotFoundError("TAESD model not found")
        network = build()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        sd_vae_taesd_models[name] = network.eval().to(devices.device, devices.dtype)
    return sd_vae_taesd_models[name]


def decoder_model():
    return _model("decoder", decoder)


def encoder_model():
    return _model("encoder", encoder)
