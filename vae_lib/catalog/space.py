"""The step between the latents of a sampler and those of the VAE."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_lib.catalog.family import Family
from vae_lib.latents import SamplerLatents, VAELatents


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """The sampler's latents are ``(z - shift) * scale`` of the VAE's ``z``, packed by ``patch`` before that.

    ``scale`` and ``shift`` are numbers, or tensors (1, channels, 1, 1), one number for each packed channel. A sampler
    that works on unpacked latents (``packed`` is False) has them unpacked again after that.
    """

    scale: float | Tensor
    shift: float | Tensor = 0.0
    patch: int = 1
    packed: bool = True

    @classmethod
    def of(cls, family: Family, statistics: Mapping[str, Tensor]) -> LatentSpace:
        """The space of a family.

        Args:
            statistics: the tensors, by name, that its packing asks for; its own statistics are used where they are.
        """
        packing, own = family.packing, family.statistics
        if own is not None and own.mean in statistics:
            mean, deviation = (statistics[name].float().view(1, -1, 1, 1) for name in (own.mean, own.deviation))
            return cls(own.scale / deviation, mean)
        if family.deviation:
            mean, deviation = (torch.tensor(x).view(1, -1, 1, 1) for x in (family.mean, family.deviation))
            return cls(1 / deviation, mean)
        if packing is None:
            return cls(family.scaling_factor, family.shift_factor)
        mean, variance = (statistics[name].float().view(1, -1, 1, 1) for name in (packing.mean, packing.variance))
        return cls((variance + packing.eps).rsqrt(), mean, packing.patch, packing.packed)

    @property
    def side(self) -> int:
        """How many of the VAE's latents lie along one of the sampler's, in height and in width."""
        return self.patch if self.packed else 1

    def for_vae(self, latents: SamplerLatents) -> VAELatents:
        """The VAE's latents (B, C, p h, p w), float32, of the sampler's (B, p p C, h, w), or (B, C, p h, p w).

        Unpacked ones that are no whole squares are continued with zeros, as Forge Neo does it.
        """
        scale, shift = self._on(latents.device)
        z = latents.to(torch.float32)
        if not self.packed:
            z = F.pad(z, (0, -z.shape[3] % self.patch, 0, -z.shape[2] % self.patch))
            z = F.pixel_unshuffle(z, self.patch)
        return VAELatents(F.pixel_shuffle(z / scale + shift, self.patch))

    def for_diffusion(self, latents: VAELatents) -> SamplerLatents:
        """The sampler's latents, float32, of the VAE's (B, C, p h, p w): ``for_vae``, undone."""
        scale, shift = self._on(latents.device)
        normalised = (F.pixel_unshuffle(latents.to(torch.float32), self.patch) - shift) * scale
        return SamplerLatents(normalised if self.packed else F.pixel_shuffle(normalised, self.patch))

    def of_taesd(self, latents: Tensor) -> SamplerLatents:
        """The sampler's latents of those that TAESD encoded (B, C, p h, p w): these only have to be packed."""
        return SamplerLatents(F.pixel_unshuffle(latents, self.side))

    @property
    def is_of_vae(self) -> bool:
        """Whether it is that of the VAE's own latents: nothing is scaled, shifted or packed."""
        return self.same_as(LatentSpace(1.0))

    def _on(self, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
        scale, shift = (x.to(device) if isinstance(x, Tensor) else x for x in (self.scale, self.shift))
        return scale, shift

    def same_as(self, other: LatentSpace) -> bool:
        """Whether latents of the one are latents of the other, up to rounding of the numbers."""
        return (self.patch, self.packed) == (other.patch, other.packed) and all(
            _close(ours, theirs) for ours, theirs in ((self.scale, other.scale), (self.shift, other.shift))
        )

    def metadata(self) -> dict[str, str]:
        """For the latents' file; the factors by themselves as well, for programs that know no more than them."""
        values = {
            "scale": _plain(self.scale),
            "shift": _plain(self.shift),
            "patch": self.patch,
            "packed": self.packed,
        }
        factors = {}
        if isinstance(self.scale, float) and isinstance(self.shift, float) and self.patch == 1:
            factors = {"scaling_factor": repr(self.scale), "shift_factor": repr(self.shift)}
        return {"latent_space": json.dumps(values), **factors}

    @classmethod
    def parse(cls, text: str) -> LatentSpace:
        """What ``metadata`` wrote as ``latent_space``.

        Raises:
            ValueError: when it is something else.
        """
        try:
            values = json.loads(text)
            scale, shift, patch = _parsed(values["scale"]), _parsed(values["shift"]), values["patch"]
            packed = bool(values.get("packed", True))  # files of the first days lack it
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"no latent space: {error}") from error
        is_zero = bool((scale == 0).any()) if isinstance(scale, Tensor) else scale == 0
        if is_zero or not isinstance(patch, int) or isinstance(patch, bool) or not 1 <= patch <= 8:
            raise ValueError("no latent space")
        return cls(scale, shift, patch, packed)


def _close(one: float | Tensor, other: float | Tensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.allclose(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-6))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6)


def _plain(value: float | Tensor) -> float | list[float]:
    return value.flatten().tolist() if isinstance(value, Tensor) else float(value)


def _parsed(value: Any) -> float | Tensor:
    numbers = [float(number) for number in (value if isinstance(value, list) else [value])]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("no latent space: numbers are missing, or not finite")
    return torch.tensor(numbers).view(1, -1, 1, 1) if isinstance(value, list) else numbers[0]
