"""The families of Stable Diffusion VAEs: same architecture, different latents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A latent space: the sampler's latents are ``(z - shift_factor) * scaling_factor`` of the VAE's ``z``.

    ``taesd_stem`` names the tiny autoencoder of the same space ("taesd": taesd_decoder.pth), or is None.
    """

    name: str
    latent_channels: int
    scaling_factor: float
    shift_factor: float = 0.0
    taesd_stem: str | None = None


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("SD1", 4, 0.18215, taesd_stem="taesd"),
        Family("SD2", 4, 0.18215, taesd_stem="taesd"),
        Family("SDXL", 4, 0.13025, taesd_stem="taesdxl"),
        Family("SD3", 16, 1.5305, 0.0609, taesd_stem="taesd3"),
        Family("FLUX.1", 16, 0.3611, 0.1159, taesd_stem="taef1"),
    )
}
