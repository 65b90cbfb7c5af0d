"""The VAE object of Forge and its kin, as far as a picture goes through it; ``management`` is their memory manager."""

import torch


class VAE:
    management = None
    downscale_ratio = 8

    def __init__(self, model):
        self.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * 64 * dtype.itemsize
        self.first_stage_model, self.vae_dtype, self.latent_channels = model, torch.float32, 4
        self.patcher = object()

    def decode(self, samples):
        """(B, C, h, w), unscaled, to (B, H, W, 3) in [0, 1]; in tiles when memory runs out."""
        try:
            needed = self.memory_used_decode(samples.shape, self.vae_dtype)
            self.management.load_models_gpu([self.patcher], memory_required=needed)
            pictures = self.first_stage_model.decode(samples)
        except self.management.OutOfMemory:
            middle = samples.shape[3] // 2
            halves = samples[..., :middle], samples[..., middle:]
            pictures = torch.cat([self.first_stage_model.decode(half) for half in halves], dim=3)
        return torch.clamp((pictures + 1) / 2, 0, 1).movedim(1, -1)

    def encode(self, pixels):
        """(B, H, W, 3) in [0, 1] to (B, C, h, w), unscaled."""
        pixels = pixels.movedim(-1, 1)
        needed = self.memory_used_encode(pixels.shape, self.vae_dtype)
        self.management.load_models_gpu([self.patcher], memory_required=needed)
        return self.first_stage_model.encode(2 * pixels - 1).sample()
