"""A family of VAEs: the same architecture perhaps as another's, but latents of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Packing:
    """How a family's sampler packs latents: squares of ``patch`` x ``patch`` become channels, each one normalised.

    ``mean`` and ``variance`` name the tensors beside the VAE that hold one number for each packed channel; ``eps``
    is added to the variance. ``packed`` is False where the sampler's latents are unpacked again after that.
    """

    patch: int
    mean: str
    variance: str
    eps: float
    packed: bool = True


@dataclass(frozen=True)
class Statistics:
    """Tensors beside a VAE with one number for each channel: ``mean``, and ``deviation``, which is ``scale`` times too
    large for ``Family.deviation``."""

    mean: str
    deviation: str
    scale: float = 1.0


Architecture = Literal["AutoencoderKL", "WanVAE"]


@dataclass(frozen=True)
class Family:
    """A latent space, and the signs by which its files are recognised. Rows are in ``families``.

    Attributes:
        scaling_factor, shift_factor: the sampler's latents are ``(z - shift_factor) * scaling_factor`` of the VAE's
            ``z``; 1 and 0 where ``packing`` or ``mean`` and ``deviation`` say how they are normalised instead.
        taesd_stem: the tiny autoencoder of the same space ("taesd": taesd_decoder.pth), or None; that of a video VAE
            is one file ("taew2_1": taew2_1.pth), of which only the decoder is used.
        words: a regular expression for its name in metadata and file names, and for those of models with its VAE.
        context_widths: widths of the text context that its UNets attend to.
        beside: a regular expression for names of tensors that only its checkpoints have beside the VAE.
        mean, deviation: of each channel, where the sampler's latents are ``(z - mean) / deviation``; else empty.
        statistics: the tensors beside the VAE that hold these two, and what the second is divided by.
        architecture: the network of its VAE, by the name of its class.
        downscale: pixels of the picture per latent of the VAE, along each side.
        quant_convs: whether its VAE has the 1x1 convolutions behind the encoder and before the decoder.
        vae_of: the family whose file its VAE is, where it has none of its own: only what lies beside that tells.
    """

    name: str
    latent_channels: int
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    taesd_stem: str | None = None
    words: str | None = None
    context_widths: tuple[int, ...] = ()
    beside: str | None = None
    packing: Packing | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    statistics: Statistics | None = None
    architecture: Architecture = "AutoencoderKL"
    downscale: int = 8
    quant_convs: bool = True
    vae_of: str | None = None

    @property
    def is_by_channel(self) -> bool:
        """Whether each channel of the sampler's latents has factors of its own."""
        return self.packing is not None or bool(self.deviation)

    @property
    def sampler_channels(self) -> int:
        """Channels of the latents as the sampler leaves them."""
        return self.latent_channels * (self.packing.patch**2 if self.packing and self.packing.packed else 1)

    def taesd_files(self, folder: Path | str, half: str) -> list[Path]:
        """Where a half ("encoder") of its TAESD may lie: the file that the WebUI itself reads, then safetensors."""
        names = [name for each, name in self.taesd_halves.items() if each == half]
        return [Path(folder) / f"{name}{suffix}" for name in names for suffix in (".pth", ".safetensors")]

    @property
    def taesd_halves(self) -> dict[str, str]:
        """The halves of its TAESD, and what the file of each is called."""
        if self.taesd_stem is None:
            return {}
        if self.architecture == "WanVAE":
            return {"decoder": self.taesd_stem}
        return {half: f"{self.taesd_stem}_{half}" for half in ("encoder", "decoder")}

    def shares_latents(self, other: Family) -> bool:
        """Whether latents of the one are latents of the other, as with SD1 and SD2."""
        return self._latents == other._latents

    def decodes_with(self, other: Family) -> bool:
        """Whether the other family's VAE is right for its latents."""
        return self.shares_latents(other) or self.vae_of == other.name

    @property
    def _latents(self) -> tuple[object, ...]:
        """All that tells latents of one family from another's."""
        factors = self.scaling_factor, self.shift_factor
        numbers = factors, self.packing, self.mean, self.deviation
        return self.latent_channels, self.downscale, self.architecture, numbers
