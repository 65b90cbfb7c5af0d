"""The families that are known: one row each, and how one is recognised by what a file says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vae_lib.catalog import statistics
from vae_lib.catalog.family import Architecture, Family, Packing, Statistics
from vae_lib.catalog.space import LatentSpace

_FLUX2 = Packing(patch=2, mean="bn.running_mean", variance="bn.running_var", eps=1e-4)

# Published in the config.json of its VAE, with a scaling_factor of 0.5, by which each deviation is divided here.
_PLAYGROUND_MEAN = (-1.6574, 1.886, -1.383, 2.5155)
_PLAYGROUND_DEVIATION = tuple(deviation / 0.5 for deviation in (8.4927, 5.9022, 6.5498, 5.2299))

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "SD1",
            4,
            0.18215,
            taesd_stem="taesd",
            words=r"(?<![a-z])(stable[-_ ]diffusion|sd)[-_ ]?v?1([._-]?[1-5])?(?![0-9])"
            r"|ft[-_](mse|ema)|kl[-_]f8|(?<![a-z_])taesd(?!xl|3)",
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
            words=r"sdxl|stable[-_ ]?diffusion[-_ ]?xl|(?<![a-z])sd[-_]?xl",
            context_widths=(2048, 1280),
            # AuraFlow's, whose VAE is SDXL's
            beside=r"conditioner\.embedders\.|model\.diffusion_model\.double_layers\.",
        ),
        # A UNet of SDXL's size, which was trained on latents that are normalised by channel.
        Family(
            "Playground v2.5",
            4,
            words=r"playground[-_. ]?v?2[._-]?5",
            beside=r"edm_(mean|std)$",
            mean=_PLAYGROUND_MEAN,
            deviation=_PLAYGROUND_DEVIATION,
            statistics=Statistics("edm_mean", "edm_std", scale=0.5),
            vae_of="SDXL",
        ),
        Family(
            "x4 upscaler",
            4,
            0.08333,
            words=r"x4[-_ ]?upscal|StableDiffusionUpscale",
            context_widths=(1024,),
            downscale=4,
        ),
        Family(
            "SD3",
            16,
            1.5305,
            0.0609,
            taesd_stem="taesd3",
            words=r"(?<![a-z])(stable[-_ ]?diffusion|sd|taesd)[-_ ]?v?3([._-]?5)?(?![0-9])",
            beside=r"model\.diffusion_model\.joint_blocks\.",
            quant_convs=False,
        ),
        Family(
            "FLUX.1",
            16,
            0.3611,
            0.1159,
            taesd_stem="taef1",
            # With its VAE: Chroma, Lumina 2, Z-Image, HiDream. "ae" is what its makers call the file.
            words=r"(?<![a-z])flux[-_. ]?1|(?<![a-z])flux(?![-_. ]?2)([-_. ]?(vae|ae|pipeline)|(?![a-z0-9]))|taef1"
            r"|^ae([-_. ](bf16|fp16|fp32|fp8)[-_.a-z0-9]*)?$"
            r"|(?<![a-z])(z[-_. ]?image|chroma(?![a-z])|lumina[-_. ]?(image[-_. ]?)?v?2|hidream)",
            beside=r"model\.diffusion_model\.(double_blocks|cap_embedder|double_stream_blocks)\.",
            quant_convs=False,
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
            vae_of="FLUX.2",
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
            downscale=16,
        ),
        Family(
            "Qwen-Image 2.1",
            64,
            words=r"qwen[-_. ]?image[-_. ]?(edit[-_. ]?)?2[._-]?1(?![0-9])",
            mean=statistics.QWEN_IMAGE_21_MEAN,
            deviation=statistics.QWEN_IMAGE_21_DEVIATION,
            architecture="WanVAE",
            downscale=16,
        ),
    )
}

_CONTEXT = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")


def families_of(channels: int, architecture: Architecture = "AutoencoderKL") -> list[Family]:
    """Those whose VAEs of this architecture, each a file of its own, have so many latent channels."""
    return [
        family
        for family in FAMILIES.values()
        if (family.latent_channels, family.architecture) == (channels, architecture) and family.vae_of is None
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


def family_of_space(channels: int, space: LatentSpace) -> Family | None:
    """The family whose sampler has latents of so many channels in this space; the first where two have the same.

    Packed ones are recognised by their packing: their numbers are in each file.
    """
    for family in FAMILIES.values():
        packing = family.packing
        if family.sampler_channels != channels:
            continue
        if packing is None and LatentSpace.of(family, {}).same_as(space):
            return family
        is_by_channel = packing is not None and not isinstance(space.scale, float)
        if packing is not None and is_by_channel and (packing.patch, packing.packed) == (space.patch, space.packed):
            return family
    return None


def family_by_factors(channels: int, scale: float, shift: float, name: str | None = None) -> Family:
    """The family of these factors (and this name, if one is given), or one of its own where no known one has them."""
    for family in FAMILIES.values():
        if (
            name in (None, family.name)
            and family.latent_channels == channels
            and not family.is_by_channel
            and math.isclose(family.scaling_factor, scale, rel_tol=1e-4)
            and math.isclose(family.shift_factor, shift, rel_tol=1e-4, abs_tol=1e-6)
        ):
            return family
    return Family(name or "its own", channels, scale, shift)


def families_of_diffusion_model(shapes: Mapping[str, Sequence[int]]) -> list[Family]:
    """The families whose UNet or transformer may be the one among the tensors ``name -> shape``."""
    widths = {shape[1] for name, shape in shapes.items() if _CONTEXT.fullmatch(name) and len(shape) == 2}
    return [
        family
        for family in FAMILIES.values()
        if widths.intersection(family.context_widths)
        or (family.beside is not None and any(re.match(family.beside, name) for name in shapes))
    ]
