"""The host double's VAE, in the layout and with the call structure of CompVis' latent-diffusion.

Written apart from `vae_lib.networks` on purpose: what the extension computes is compared with this.
"""

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k * q.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1)))


def middle(channels):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = ResnetBlock(channels, channels), AttnBlock(channels), None
    mid.block_2 = ResnetBlock(channels, channels)
    return mid


def level(inputs, outputs, blocks):
    stage = nn.Module()
    stage.block = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
    return stage


class Encoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(level(a, b, num_res_blocks) for a, b in zip([ch, *widths], widths, strict=False))
        for stage, width in zip(self.down[:-1], widths, strict=False):
            stage.downsample = Resample(width, up=False)
        self.mid = middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], 2 * z_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                x = block(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, z_channels):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        inputs = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(level(a, b, num_res_blocks + 1) for a, b in zip(inputs, widths, strict=True))
        for stage, width in zip(self.up[1:], widths[1:], strict=True):
            stage.upsample = Resample(width, up=True)
        self.norm_out, self.conv_out = norm(ch), nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, z):
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(self.conv_in(z))))
        for stage in reversed(self.up):
            for block in stage.block:
                x = block(x)
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Posterior:
    def __init__(self, moments):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)

    def sample(self):
        return self.mean + self.std * torch.randn(self.mean.shape).to(self.mean)

    def mode(self):
        return self.mean


class AutoencoderKL(nn.Module):
    def __init__(self, ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1, z_channels=4, embed_dim=4):
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def encode(self, x):
        return Posterior(self.quant_conv(self.encoder(x)))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))


class SDVAE(nn.Module):
    """SD3's: without the two 1x1 convolutions, and ``encode`` gives latents instead of a posterior."""

    def __init__(self, ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1, z_channels=16):
        super().__init__()
        self.encoder = Encoder(ch, ch_mult, num_res_blocks, z_channels)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels)

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def encode(self, x):
        posterior = Posterior(self.encoder(x))
        return posterior.mean + posterior.std * torch.randn_like(posterior.mean)

    def decode(self, z):
        return self.decoder(z)
