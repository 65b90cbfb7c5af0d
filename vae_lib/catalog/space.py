"""The way between the latents of a sampler and those of the VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_lib.catalog.family import Family


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """The sampler's latents are ``(z - shift) * scale`` of the VAE's ``z``, packed by ``patch`` before that.

    ``scale`` and ``shift`` are numbers, or tensors (1, channels, 1, 1), one number for each packed channel.
    """

    scale: float | Tensor
    shift: float | Tensor = 0.0
    patch: int = 1

    @classmethod
    def of(cls, family: Family, statistics: Mapping[str, Tensor]) -> LatentSpace:
        """The space of a family; ``statistics`` are the tensors, by name, that its packing asks for."""
        packing = family.packing
        if packing is None:
            return cls(family.scaling_factor, family.shift_factor)
        mean, variance = (
            statistics[name].float().view(1, -1, 1, 1) for name in (packing.mean, packing.variance)
        )
        return cls((variance + packing.eps).rsqrt(), mean, packing.patch)

    def for_vae(self, latents: Tensor) -> Tensor:
        """The VAE's latents (B, C, p h, p w), float32, of the sampler's (B, p p C, h, w)."""
        return F.pixel_shuffle(latents.to(torch.float32) / self.scale + self.shift, self.patch)

    def for_diffusion(self, latents: Tensor) -> Tensor:
        """The sampler's latents (B, p p C, h, w), float32, of the VAE's (B, C, p h, p w)."""
        return (F.pixel_unshuffle(latents.to(torch.float32), self.patch) - self.shift) * self.scale
