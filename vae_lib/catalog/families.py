"""The families that are known: one row each, and how a family is told by what a file says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vae_lib.catalog import statistics
from vae_lib.catalog.family import Architecture, Family, Packing
from vae_lib.catalog.space import LatentSpace

_FLUX2 = Packing(patch=2, mean="bn.running_mean", variance="bn.running_var", eps=1e-4)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "SD1",
            4,
            0.18215,
            taesd_stem="taesd",
            words=r"(?<![a-z])(stable[-_ ]diffusion|sd)[-_ ]?v?1([._-]?[1-5])?(?![0-9])"
            r"|ft[-_](mse|ema)|kl[-_]f8|(?<![a-z])taesd(?!xl|3)",
            context_widths=(768,),
        ),
        Family(
            "SD2",
            4,
            0.18215,
            taesd_stem="taesd",
            words=r"(?<![a-z])(stable[-_ ]diffusion|sd)[-_ ]?v?2([._-]?[01])?(?![0-9])",
            context_widths=(1024,),
        ),
        Family(
            "SDXL",
            4,
            0.13025,
            taesd_stem="taesdxl",
            words=r"sdxl|stable[-_ ]diffusion[-_ ]xl|(?<![a-z])sd[-_]?xl",
            context_widths=(2048, 1280),
            beside=r"conditioner\.embedders\.",
        ),
        Family(
            "SD3",
            16,
            1.5305,
            0.0609,
            taesd_stem="taesd3",
            words=r"(?<![a-z])(stable[-_ ]diffusion|sd|taesd)[-_ ]?v?3([._-]?5)?(?![0-9])",
            beside=r"model\.diffusion_model\.joint_blocks\.",
        ),
        Family(
            "FLUX.1",
            16,
            0.3611,
            0.1159,
            taesd_stem="taef1",
            words=r"(?<![a-z])flux[-_. ]?1|(?<![a-z])flux(?![a-z0-9])(?![-_. ]?2)|taef1",
            beside=r"model\.diffusion_model\.double_blocks\.",
        ),
        Family(
            "FLUX.2",
            32,
            taesd_stem="taef2",
            words=r"(?<![a-z])flux[-_. ]?2(?![0-9])|taef2",
            beside=r"model\.diffusion_model\.double_blocks\.",
            packing=_FLUX2,
        ),
        # An SDXL UNet that was taught FLUX.2's latents. Its VAE is FLUX.2's file, so only a host tells it.
        Family(
            "Mugen",
            32,
            taesd_stem="taef2",
            words=r"(?<![a-z])mugen(?![a-z])",
            packing=replace(_FLUX2, packed=False),
        ),
        # The VAE of Wan 2.1, with which Qwen-Image, Anima, Krea 2 and Wan 2.2 14B were trained as well.
        Family(
            "Qwen-Image",
            16,
            taesd_stem="taew2_1",
            words=r"qwen[-_. ]?(image|2d)|(?<![a-z])(anima|krea[-_. ]?2)(?![a-z0-9])"
            r"|(?<![a-z])(wan|taew)[-_. ]?(2[._-]?1)(?![0-9])",
            mean=statistics.WAN_21_MEAN,
            deviation=statistics.WAN_21_DEVIATION,
            architecture="WanVAE",
        ),
        # Of Wan 2.2 5B; the 14B's is that of Wan 2.1.
        Family(
            "Wan 2.2",
            48,
            words=r"(?<![a-z])wan[-_. ]?2[._-]?2(?![0-9])",
            mean=statistics.WAN_22_MEAN,
            deviation=statistics.WAN_22_DEVIATION,
            architecture="WanVAE",
        ),
        Family(
            "Qwen-Image 2.1",
            64,
            words=r"qwen[-_. ]?image[-_. ]?(edit[-_. ]?)?2[._-]?1(?![0-9])",
            mean=statistics.QWEN_IMAGE_21_MEAN,
            deviation=statistics.QWEN_IMAGE_21_DEVIATION,
            architecture="WanVAE",
        ),
    )
}

_CONTEXT = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")


def families_of(channels: int, architecture: Architecture = "AutoencoderKL") -> list[Family]:
    """Those that a file with such a VAE of so many latent channels may be of: not Mugen, whose file is FLUX.2's."""
    return [
        family
        for family in FAMILIES.values()
        if (family.latent_channels, family.architecture) == (channels, architecture)
        and (family.packing is None or family.packing.packed)
    ]


def family_in_text(text: str) -> Family | None:
    """The family that a name or a piece of metadata speaks of."""
    # "sd" and "flux" alone mean the first of their kind: ask the later ones first
    return next(
        (
            family
            for family in reversed(FAMILIES.values())
            if family.words is not None and re.search(family.words, text[:200], re.IGNORECASE)
        ),
        None,
    )


def known_family(channels: int, scale: float, shift: float, name: str | None = None) -> Family | None:
    """The family of these factors (and this name, if one is given); the first where two have the same."""
    for family in families_of(channels):
        if (
            name in (None, family.name)
            and math.isclose(family.scaling_factor, scale, rel_tol=1e-4)
            and math.isclose(family.shift_factor, shift, rel_tol=1e-4, abs_tol=1e-6)
        ):
            return family
    return None


def family_of_space(channels: int, space: LatentSpace) -> Family | None:
    """The family whose sampler has latents of so many channels in this space; the first where two have the same.

    Packed ones are told by their packing: their numbers are in each file.
    """
    per_channel = (f for f in FAMILIES.values() if f.deviation and f.latent_channels == channels)
    if found := next((f for f in per_channel if LatentSpace.of(f, {}).same_as(space)), None):
        return found
    if not isinstance(space.scale, float) or not isinstance(space.shift, float):
        shape = space.patch, space.packed
        packed = (f for f in FAMILIES.values() if f.packing and (f.packing.patch, f.packing.packed) == shape)
        return next((family for family in packed if family.sampler_channels == channels), None)
    return known_family(channels, space.scale, space.shift) if space.patch == 1 else None


def family_by_factors(channels: int, scale: float, shift: float, name: str | None = None) -> Family:
    """As ``known_family``, or one of its own where no known one has them."""
    return known_family(channels, scale, shift, name) or Family(name or "its own", channels, scale, shift)


def family_of_diffusion_model(shapes: Mapping[str, Sequence[int]], channels: int) -> Family | None:
    """The family of latents of ``channels`` whose UNet or transformer is among the tensors ``name -> shape``."""
    widths = {shape[1] for name, shape in shapes.items() if _CONTEXT.fullmatch(name) and len(shape) == 2}
    for family in families_of(channels):
        if widths.intersection(family.context_widths):
            return family
    for family in families_of(channels):
        if family.beside is not None and any(re.match(family.beside, name) for name in shapes):
            return family
    return None
