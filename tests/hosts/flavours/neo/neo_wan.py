"""Wan's VAE in Forge Neo: convolutions in time, frames in and out, and what the VAE object makes of them."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from backend.patcher.vae import VAE
from torch import nn

WIDTHS, BLOCKS, CHANNELS = (
    (8, 8, 16),
    1,
    16,
)  # levels of the decoder in reverse, blocks of an encoder's level, latents


class CausalConv3d(nn.Conv3d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 0, 0, 0, self.kernel_size[0] - 1, 0)))


class RMS_norm(nn.Module):
    def __init__(self, channels, images):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *((1, 1) if images else (1, 1, 1))).uniform_(0.5, 1.5))

    def forward(self, x):
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


def conv3(channels, out, size=3):
    pad = size // 2
    return CausalConv3d(channels, out, size, padding=(0, pad, pad))


class ResidualBlock(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.residual = nn.Sequential(
            RMS_norm(channels, False), nn.SiLU(), conv3(channels, out),
            RMS_norm(out, False), nn.SiLU(), nn.Dropout(0.0), conv3(out, out),
        )  # fmt: skip
        self.shortcut = conv3(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x):
        return self.residual(x) + self.shortcut(x)


class ByFrame(nn.Module):
    """What sees no time: ``frame`` is given (B T, C, h, w)."""

    def forward(self, x):
        batch, _, times = x.shape[:3]
        return self.frame(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, times)).transpose(1, 2)


class AttentionBlock(ByFrame):
    def __init__(self, channels):
        super().__init__()
        self.norm = RMS_norm(channels, True)
        self.to_qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def frame(self, x):
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(found.unflatten(2, x.shape[2:]))


class Resample(ByFrame):
    def __init__(self, channels, up):
        super().__init__()
        self.resample = (
            nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(channels, channels // 2, 3, padding=1))
            if up
            else nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        )
        self.up = up
        # only from the second frame on
        self.time_conv = (CausalConv3d if up else nn.Conv3d)(
            channels, 2 * channels if up else channels, (3, 1, 1), stride=(1 if up else 2, 1, 1)
        )

    def frame(self, x):
        return self.resample(x)

    def forward(self, x):
        if not self.up:
            x = super().forward(x)
        if x.shape[2] > 1:
            first = x[:, :, :1]
            if self.up:  # (B, 2 C, T - 1, h, w) -> (B, C, 2 T - 2, h, w)
                later = torch.stack(self.time_conv(x[:, :, 1:]).chunk(2, dim=1), 3).flatten(2, 3)
            else:
                later = self.time_conv(x)
            x = torch.cat([first, later], 2)
        return super().forward(x) if self.up else x


def layers(widths, blocks, up):
    made, channels = [], widths[0]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            made.append(ResidualBlock(channels, width))
            channels = width
        if level + 1 < len(widths):
            made.append(Resample(width, up))
            channels = width // 2 if up else width
    return nn.Sequential(*made)


def middle(channels):
    return nn.Sequential(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


def head(channels, out):
    return nn.Sequential(RMS_norm(channels, False), nn.SiLU(), conv3(channels, out))


class Encoder3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.downsamples = conv3(3, WIDTHS[0]), layers(WIDTHS, BLOCKS, False)
        self.middle, self.head = middle(WIDTHS[-1]), head(WIDTHS[-1], 2 * CHANNELS)

    def forward(self, x):
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder3d(nn.Module):
    def __init__(self):
        super().__init__()
        widths = WIDTHS[::-1]
        self.conv1, self.middle = conv3(CHANNELS, widths[0]), middle(widths[0])
        self.upsamples, self.head = layers(widths, BLOCKS + 1, True), head(WIDTHS[0], 3)

    def run_up(self, x):
        return [self.head(self.upsamples(x))]

    def forward(self, x):
        return self.run_up(self.middle(self.conv1(x)))


class WanVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.conv1 = Encoder3d(), conv3(2 * CHANNELS, 2 * CHANNELS, 1)
        self.conv2, self.decoder = conv3(CHANNELS, CHANNELS, 1), Decoder3d()
        generator = torch.Generator().manual_seed(7)
        mean, deviation = (
            torch.randn(CHANNELS, generator=generator),
            torch.rand(CHANNELS, generator=generator) + 1,
        )
        self.latent_format = SimpleNamespace(
            scale_factor=1.0,
            latents_mean=mean.view(1, -1, 1, 1, 1),
            latents_std=deviation.view(1, -1, 1, 1, 1),
        )

    def process_out(self, z):
        return z * self.latent_format.latents_std + self.latent_format.latents_mean

    def encode(self, x):
        return self.conv1(self.encoder(x[:, :, : 1 + (x.shape[2] - 1) // 4 * 4])).chunk(2, dim=1)[0]

    def decode(self, z):
        return torch.cat(self.decoder(self.conv2(z)), dim=2)


class FramesVAE(VAE):
    """The VAE object: pictures are frames of one video."""

    is_wan = True

    def __init__(self, network):
        super().__init__(network)
        self.latent_channels = CHANNELS
        self.memory_used_encode = lambda shape, dtype: 1500 * shape[3] * shape[4] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: 2200 * shape[3] * shape[4] * 64 * dtype.itemsize

    def encode(self, pixels):
        frames = pixels.movedim(-1, 0)[None]  # (T, H, W, 3) -> (1, 3, T, H, W)
        needed = self.memory_used_encode(frames.shape, self.vae_dtype)
        self.management.load_models_gpu([self.patcher], memory_required=needed)
        return self.first_stage_model.encode(2 * frames - 1)


def engine(kind):
    """A checkpoint's model with such a VAE, whose weights were loaded in inference mode."""
    for layer in list(globals().values()):
        if isinstance(layer, type) and layer.__module__ == __name__:
            layer.__module__ = "backend.nn.wan_vae"
    with torch.inference_mode():
        torch.manual_seed(8)
        made = kind(VAE, True)
        network = WanVAE().eval().requires_grad_(False)
        made.forge_objects = SimpleNamespace(vae=FramesVAE(network))
    made.is_wan = True
    made.decode_first_stage = torch.inference_mode()(
        lambda x: made.forge_objects.vae.decode(network.process_out(x)).movedim(-1, 2) * 2.0 - 1.0
    )
    return made
