"""Where latents, a VAE and a TAESD meet: whether they belong together, and in which space the latents are.

Each tells something of its own: latents by their metadata, the others by their files. What the user says decides; else
what is known must agree; and where it does not, or nothing is known, that is a question for the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from vae_lib.catalog import Family, LatentSpace, family_of_space
from vae_lib.checkpoints.identify import Identity
from vae_lib.checkpoints.latents import check_channels
from vae_lib.checkpoints.load import LoadedVAE
from vae_lib.errors import InputError
from vae_lib.latents import SamplerLatents


class OpenSpace(InputError):
    """Nobody but the user can tell whose latents they are: one of the ``candidates``, the likeliest first."""

    def __init__(self, sentence: str, candidates: Sequence[Family]) -> None:
        super().__init__(sentence)
        self.candidates = tuple(candidates)


@dataclass(frozen=True)
class Meeting:
    """A VAE and a TAESD, of which at least one is there, and whose latents they are said to be by the user, if at all.

    Raises:
        InputError: when VAE and TAESD take latents of different families, or that of the user is not theirs.
    """

    vae: LoadedVAE | None
    tiny: LoadedVAE | None = None
    family: Family | None = None

    def __post_init__(self) -> None:
        for loaded in filter(None, (self.vae, self.tiny)):
            _check_family(loaded.identity, self.family)
        if self.vae is None or self.tiny is None:
            return
        vae, tiny = self.vae.identity, self.tiny.identity
        wants, takes = _family_of(vae), _family_of(tiny)
        if vae.latent_channels != tiny.latent_channels:
            other = f"takes latents of {tiny.latent_channels} channels and those of {vae.path.name} have "
            other += str(vae.latent_channels)
        elif vae.downscale != tiny.downscale or (tiny.layout == "taehv") != (vae.kind == "WanVAE"):
            other = f"takes other latents than those of {vae.path.name}"
        elif self.family is None and wants is not None and takes is not None and not wants.shares_latents(takes):
            other = f"takes latents of {takes.name} and those of {vae.path.name} are of {wants.name}"
        else:
            return
        raise InputError(
            f"{tiny.path.name} {other}: it is the tiny autoencoder of another family. Give that of this VAE's family, "
            "or none."
        )

    @property
    def guessed(self) -> str | None:
        """A sentence where nothing but a name tells whose latents the VAE's are; None where more does."""
        identity = None if self.vae is None else self.vae.identity
        if identity is None or identity.family or self.family or identity.guess is None:
            return None
        return f"{identity.path.name}: {identity.explanation} Latents of {identity.guess.name} are assumed."

    def sampler_space(self) -> LatentSpace:
        """That of the sampler's latents of the VAE, or of TAESD where there is no VAE.

        Raises:
            OpenSpace: when nothing tells, or the files contradict themselves.
        """
        loaded = self.vae or self.tiny
        assert loaded is not None
        family = self.family or _family_of(loaded.identity)
        space = None if family is None else loaded.space_of(family)
        if space is None:
            name, identity = loaded.identity.path.name, loaded.identity
            raise OpenSpace(f"{name}: {identity.explanation}", identity.candidates if family is None else ())
        return space

    def space_of(self, latents: Tensor, own: LatentSpace | None) -> LatentSpace | None:
        """That of latents (B, C, h, w) whose file or program says ``own`` of them; None: nothing.

        None where they are TAESD's sampler's, and nothing tells more of it.

        Raises:
            InputError: when they have other channels than the files take.
            OpenSpace: as ``sampler_space``, and when they say that they are of another family than the files are.
        """
        loaded, channels = self.vae or self.tiny, latents.shape[1]
        assert loaded is not None
        identity = loaded.identity
        check_channels(identity, channels)
        if own is not None and (own.is_of_vae or (self.family is None and _fit(identity, own, channels))):
            return own
        if own is not None and self.family is None:
            theirs, known = family_of_space(channels, own), _family_of(identity)
            whose, kind = _whose(theirs, own), "the TAESD" if self.vae is None else "the VAE"
            raise OpenSpace(
                f"The latents are {whose} and {identity.path.name} is {kind} of {_name(identity)}: the picture would "
                f"be wrong. Choose {kind} of {'their family' if theirs is None else theirs.name}.",
                list(dict.fromkeys(filter(None, [theirs, *([known] if known else identity.candidates)]))),
            )
        if self.vae is None:
            family = self.family or _family_of(identity)
            packed = family is not None and channels == family.sampler_channels
            return loaded.space_of(family) if family is not None and packed else None
        space = self.sampler_space()
        if space.side > 1 and channels == identity.latent_channels:
            return LatentSpace(1.0)  # not packed: they are the VAE's own
        return space

    def for_taesd(self, latents: SamplerLatents, space: LatentSpace | None) -> SamplerLatents:
        """What TAESD takes of latents in ``space``; None: they are its own sampler's.

        Raises:
            OpenSpace: when they are of another family; or the VAE's own, and nothing tells what its sampler does then.
        """
        assert self.tiny is not None
        tiny = self.tiny.identity
        family = self.family or _family_of(tiny) or (None if self.vae is None else _family_of(self.vae.identity))
        takes = None if family is None else (self.vae or self.tiny).space_of(family)
        if space is None or (takes is not None and takes.same_as(space)):
            return latents
        theirs = family_of_space(latents.shape[1], space)
        if theirs is None and takes is not None:  # the VAE's own, or scaled as the user says
            return takes.for_diffusion(space.for_vae(latents))
        if space.is_of_vae:
            sentence = f"The latents are as a VAE gives them, and {tiny.path.name} takes the sampler's."
            raise OpenSpace(f"{sentence} {tiny.explanation}", tiny.candidates)
        if family is None or theirs is None or theirs.shares_latents(family):
            return latents
        sentence = f"The latents are {_whose(theirs, space)} and {tiny.path.name} is the TAESD of {family.name}."
        raise OpenSpace(sentence, [family])

    def packed_by_taesd(self) -> tuple[LatentSpace, dict[str, str]] | None:
        """How latents are packed that TAESD encodes, where only the VAE's file has the numbers, and what their own file
        says of them; None for all others."""
        family = None if self.vae is not None or self.tiny is None else self.family or _family_of(self.tiny.identity)
        if family is None or family.packing is None:
            return None
        return LatentSpace(1.0, 0.0, family.packing.patch, family.packing.packed), {"family": family.name}


def _family_of(identity: Identity) -> Family | None:
    """What the file says, or else its name."""
    return identity.family or identity.guess


def _whose(family: Family | None, space: LatentSpace) -> str:
    factor = f" (scaling factor {space.scale:g})" if isinstance(space.scale, float) else ""
    return f"another family's{factor}" if family is None else f"{family.name}'s"


def _name(identity: Identity) -> str:
    known = _family_of(identity)
    return identity.family_name if known is None else known.name


def _check_family(identity: Identity, family: Family | None) -> None:
    if family is None:
        return
    mine = identity.latent_channels, identity.downscale, identity.architecture
    if mine != (family.latent_channels, family.downscale, family.architecture):
        raise InputError(
            f"{identity.path.name} cannot be of {family.name}, whose network is another one: "
            f"{identity.latent_channels} latent channels with {identity.downscale} pixels a latent, and not "
            f"{family.latent_channels} with {family.downscale}."
        )


def _fit(identity: Identity, space: LatentSpace, channels: int) -> bool:
    """Whether latents of a space may be those of a VAE."""
    family = family_of_space(channels, space)
    known = _family_of(identity)
    if known is None:
        families: Sequence[Family] = identity.candidates
        return not families or (family is not None and any(family.decodes_with(other) for other in families))
    if family is not None and family.decodes_with(known):
        return True
    return not known.is_by_channel and LatentSpace.of(known, {}).same_as(space)
