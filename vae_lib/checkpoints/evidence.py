"""Which family a VAE's latents are of: what tells it, how surely, and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from vae_lib.catalog import (
    FAMILIES,
    Family,
    families_of,
    families_of_diffusion_model,
    family_by_factors,
    family_in_text,
    load_catalog,
)
from vae_lib.checkpoints.config_file import read_json
from vae_lib.checkpoints.header import quote, quote_some
from vae_lib.checkpoints.network import Described
from vae_lib.errors import VAEGuardError

Certainty = Literal["hash", "tensors", "metadata", "checkpoint", "ambiguous"]

_BY_HAND = "give its scaling and shift factor by hand (--scaling-factor and --shift-factor on the command line)"


class KnownFile(Protocol):
    """What a catalog has to say of a file; ``family`` is a name in ``FAMILIES``."""

    @property
    def title(self) -> str: ...

    @property
    def family(self) -> str: ...


Lookup = Callable[[str], "KnownFile | None"]


@dataclass(frozen=True)
class Verdict:
    """The family of a VAE's latents, or None with the ``candidates``, the likeliest first (none where it is no known
    family's).

    ``explanation`` is for the user; ``guess`` is the candidate that only names speak for.
    """

    family: Family | None
    certainty: Certainty
    explanation: str
    candidates: tuple[Family, ...]
    guess: Family | None


@dataclass(frozen=True)
class _Sign:
    """``family`` is None where it says that the latents are of no family that is known."""

    family: Family | None
    certainty: Certainty
    explanation: str


def judge(described: Described, sha256: str | None, known: Lookup | None, factor: float | None = None) -> Verdict:
    """Weigh what there is. Where all agree, that is it; where something contradicts, or nothing tells, it stays open.

    A file's hash is beyond doubt. Names say little: they contradict only metadata, and what they say alone is a guess.

    Args:
        known: catalog lookup by SHA-256; the package's own catalog when None.
        factor: a scaling factor among the tensors.
    """
    signs = list(_signs(described, sha256, known, factor))
    if not signs:
        return _open_question(described)
    first = signs[0]
    if first.family is not None and first.certainty == "hash":
        return Verdict(first.family, first.certainty, first.explanation, (first.family,), first.family)
    if first.certainty == "metadata" and (named := _by_name(described)) is not None:
        signs.append(named)
    foreign = next((sign for sign in signs if sign.family is None), None)
    if foreign is not None:
        return Verdict(None, "ambiguous", foreign.explanation, (), None)
    families = _distinct([sign.family for sign in signs if sign.family is not None])
    possible = tuple(family for family in families if _is_usable(family, described))
    if len(families) == len(possible) == 1:
        return Verdict(first.family, first.certainty, first.explanation, families, first.family)
    if len(families) == 1:  # which has another network
        is_open = _open_question(described)
        return replace(is_open, explanation=f"{first.explanation} {is_open.explanation}", guess=None)
    against = next(sign for sign in signs if sign.family is families[1])
    explanation = f"{first.explanation} But {against.explanation[0].lower()}{against.explanation[1:]}"
    candidates = tuple(family for family in possible if family.name in FAMILIES)
    return Verdict(None, "ambiguous", explanation, candidates, None)


def _distinct(families: Sequence[Family]) -> tuple[Family, ...]:
    """One of each that share their latents, the first."""
    found: list[Family] = []
    for family in families:
        if not any(family.shares_latents(other) for other in found):
            found.append(family)
    return tuple(found)


def _signs(described: Described, sha256: str | None, known: Lookup | None, factor: float | None) -> Iterator[_Sign]:
    """What tells the family, the surest first."""
    if sha256 is not None and (entry := (known or _catalog_lookup)(sha256)) is not None:
        family = FAMILIES.get(entry.family)
        if family is not None and family.latent_channels == described.network.latent_channels:
            yield _Sign(family, "hash", f"This is {entry.title}: its SHA-256 is in the catalog.")
    if (family := _family_from_factors(None, described, factor, 0.0)) is not None:
        yield _Sign(family, "tensors", f"A tensor says {family.name} (scale_factor {factor:g}).")
    yield from _signs_in_tensors(described)
    header = described.header
    if (found := _family_in_metadata(header.metadata, described)) is not None:
        yield _Sign(found[0], "metadata", f"The file's metadata says {found[0].name} ({found[1]}).")
    if (sign := _sign_in_config(described)) is not None:
        yield sign


def _signs_in_tensors(described: Described) -> Iterator[_Sign]:
    fitting = _fitting(described)
    tensors = described.header.tensors
    for family in fitting:
        if described.keys.is_taehv:
            continue  # other video models' have the same shape
        if family.packing is not None and not described.keys.is_taesd:
            explanation = f"It holds the statistics of {family.name}'s latents ({quote(family.packing.mean)})."
            yield _Sign(family, "tensors", explanation)
        elif fitting == [family] and not described.keys.beside:
            channels = described.network.latent_channels
            what = f"TAESD of {family.name} has {channels} latent channels"
            if not described.keys.is_taesd:
                what = f"VAE of {family.name} and its relatives has this network"
            yield _Sign(family, "tensors", f"Only the {what}.")
    found = families_of_diffusion_model({name: info.shape for name, info in tensors.items()})
    found = [family for family in found if family.vae_of is not None] or found
    if described.keys.is_taesd or not found:
        return
    family = next(filter(described.may_be_of, found), found[0])
    explanation = f"The diffusion model in the same checkpoint is {family.name}."
    if family.statistics is not None and family.statistics.mean in tensors:
        explanation = f"It holds the statistics of {family.name}'s latents ({quote(family.statistics.mean)})."
    yield _Sign(family, "checkpoint", explanation)


def _fitting(described: Described) -> list[Family]:
    """Families whose own VAE it may be: what is in the file says nothing else."""
    families = families_of(described.network.latent_channels, described.architecture)
    return [family for family in families if _is_usable(family, described)]


def _is_usable(family: Family, described: Described) -> bool:
    if not described.may_be_of(family):
        return False
    return described.keys.is_taesd or family.packing is None or family.packing == described.packing


def _open_question(described: Described) -> Verdict:
    """The families that it may be, and the sentence for a VAE of which nothing tells the family."""
    network, keys = described.network, described.keys
    shaped = [f for f in families_of(network.latent_channels, described.architecture) if described.may_be_of(f)]
    fitting = _fitting(described)
    names = join([family.name for family in shaped], "and")
    candidates: tuple[Family, ...] = ()
    if not shaped:
        what = f"{network.latent_channels} latent channels"
        if families_of(network.latent_channels, described.architecture):
            convs = "with" if described.has_quant_convs else "without"
            what += f" and this network ({network.downscale} pixels a latent, {convs} quant convolutions)"
        explanation = f"No known family of VAEs has {what}; {_BY_HAND}."
    elif unknown := list(keys.beside):
        explanation = (
            f"It has the shape of a VAE of {join([family.name for family in shaped], 'or')}, but tensors beside "
            f"it that no such VAE has ({quote_some(unknown)}), so its latents may be other ones; {_BY_HAND}."
        )
    elif keys.is_taehv:
        candidates = tuple(fitting)
        explanation = (
            f"The TAESDs of other video models (HunyuanVideo, CogVideoX) have the same shape as that of {names}, and "
            "nothing in the file tells."
        )
    elif not fitting:
        packing = shaped[0].packing
        assert packing is not None
        explanation = (
            f"It looks like {names}'s VAE, but the statistics of its latents ({quote(packing.mean)}, "
            f"{quote(packing.variance)}) are missing; use a file that has them, or {_BY_HAND}."
        )
    else:
        candidates = tuple(fitting)
        explanation = f"The VAEs of {names} have the same shape, and nothing else in the file tells."
    if candidates and described.config.remark is not None:
        explanation = f"{explanation} {described.config.remark}"
    hints = [(family, said) for family, said in _named(described) if family in candidates]
    named = _distinct([family for family, _ in hints])
    guess = named[0] if len(named) == 1 else None
    if named:
        explanation = f"{explanation} {' '.join(said for family, said in hints if family in named)}"
        candidates = (*named, *(family for family in candidates if family not in named))
    return Verdict(None, "ambiguous", explanation, candidates, guess)


def _by_name(described: Described) -> _Sign | None:
    family = family_in_text(described.header.path.stem)
    if family is None or not described.may_be_of(family):
        return None
    return _Sign(family, "ambiguous", f"Its name says {family.name}.")


def _named(described: Described) -> Iterator[tuple[Family, str]]:
    """What its own name says, then its neighbours: its folder's name (of ``vae``, the one above), its pipeline."""
    path = described.header.path.absolute()
    folder = path.parent.parent if path.parent.name.lower() == "vae" else path.parent
    texts = [("Its name", path.stem)]
    if not described.keys.is_taesd:  # which lie together in a folder that is named after one of them
        pipeline = read_json(folder / "model_index.json").get("_class_name")
        texts += [("Its folder's name", folder.name), ("The model_index.json beside it", str(pipeline))]
    for what, text in texts:
        if (family := family_in_text(text)) is not None:
            yield family, f"{what} says {family.name}."


def join(names: list[str], word: str) -> str:
    """``A, B or C``."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _catalog_lookup(sha256: str) -> KnownFile | None:
    try:
        return load_catalog().by_sha256(sha256)
    except VAEGuardError:  # no TOML reader, a spoilt catalog: the file can still be used
        return None


def number(text: object) -> float | None:
    """A finite number that metadata gives, or None."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        return None
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _family_from_factors(name: str | None, described: Described, scaling: object, shift: object) -> Family | None:
    """The family of these factors, if it has this network, else one of the file's own."""
    scale = number(scaling)
    if scale is None or scale <= 0:
        return None
    network = described.network
    family = family_by_factors(network.latent_channels, scale, number(shift) or 0.0, name)
    if family.name in FAMILIES and not described.may_be_of(family):
        family = Family(name or "its own", network.latent_channels, scale, number(shift) or 0.0)
    if family.name in FAMILIES:
        return family
    quant_convs = described.exact is None or described.has_quant_convs
    return replace(
        family, architecture=described.architecture, downscale=network.downscale, quant_convs=quant_convs
    )  # fmt: skip


def _family_in_metadata(metadata: Mapping[str, str], described: Described) -> tuple[Family, str] | None:
    """The family that a safetensors file's metadata tells, and the entry that tells it."""
    own = metadata.get("vae_guard.family")
    if own is not None and not (own.isprintable() and len(own) <= 40):  # it is shown as it is
        own = None
    if "scaling_factor" in metadata:
        family = _family_from_factors(own, described, metadata["scaling_factor"], metadata.get("shift_factor"))
        if family is not None:
            return family, f"scaling_factor {family.scaling_factor:g}"
    for key in ("vae_guard.family", "modelspec.architecture", "ss_base_model_version", "modelspec.title"):
        text = metadata.get(key, "")
        found = FAMILIES.get(text) or family_in_text(text)
        if found is not None and found.latent_channels == described.network.latent_channels:
            return found, f"{key} {quote(text)}"
    return None


def _sign_in_config(described: Described) -> _Sign | None:
    """What the ``config.json`` of diffusers beside a file says of its latents, if it is this file's."""
    config = described.config.values
    network = described.network
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        family = _family_of_statistics(described)
        if family is None:
            return _Sign(
                None,
                "metadata",
                "The config.json beside the file gives its latents a mean and deviation for each channel, as no known "
                f"family has; {_BY_HAND}.",
            )
        return _Sign(family, "metadata", f"The config.json beside the file says {family.name}.")
    # diffusers leaves out a scaling_factor that is its default, that of SD1 and SD2
    default = 0.18215 if config.get("latent_channels") == 4 and described.may_be_of(FAMILIES["SD1"]) else None
    family = _family_from_factors(None, described, config.get("scaling_factor", default), config.get("shift_factor"))
    if family is None or config.get("latent_channels") != network.latent_channels:
        return None
    return _Sign(family, "metadata", f"The config.json beside the file says {family.name}.")


def _family_of_statistics(described: Described) -> Family | None:
    """The family with the mean and deviation that diffusers' config.json gives; what it leaves out may be any."""
    config = described.config.values
    scale = number(config.get("scaling_factor", 1.0)) or 1.0
    for family in filter(described.may_be_of, FAMILIES.values()):
        deviation = [value * scale for value in family.deviation]
        given = ((config.get("latents_mean"), family.mean), (config.get("latents_std"), deviation))
        if family.deviation and all(numbers is None or _are_close(numbers, known) for numbers, known in given):
            return family
    return None


def _are_close(given: object, known: Sequence[float]) -> bool:
    numbers = [number(value) for value in given] if isinstance(given, list) else []
    return len(numbers) == len(known) and all(
        x is not None and math.isclose(x, y, rel_tol=1e-3) for x, y in zip(numbers, known, strict=True)
    )
