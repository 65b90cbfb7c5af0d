"""Which family a VAE's latents are of: what tells it, how surely, and what speaks against it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from vae_lib.catalog import (
    FAMILIES,
    Family,
    families_of,
    family_by_factors,
    family_in_text,
    family_of_diffusion_model,
    load_catalog,
)
from vae_lib.checkpoints.header import quote, quote_some
from vae_lib.checkpoints.network import Described
from vae_lib.errors import VAEGuardError

Certainty = Literal["hash", "tensors", "metadata", "checkpoint", "ambiguous"]

_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
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
    """The family of a VAE's latents, or None with the ``candidates`` (none of them where it is no known family's).

    ``explanation`` is for the user; ``doubt`` is the same where something in or beside the file contradicts.
    """

    family: Family | None
    certainty: Certainty
    explanation: str
    candidates: tuple[Family, ...]
    guess: Family | None
    doubt: str | None = None


@dataclass(frozen=True)
class _Sign:
    family: Family
    certainty: Certainty
    explanation: str


@dataclass(frozen=True)
class _Unbelieved:
    """A sign that decides nothing; ``is_foreign`` where it says that the latents are of no known family."""

    explanation: str
    is_foreign: bool


def judge(described: Described, sha256: str | None, known: Lookup | None) -> Verdict:
    """Weigh what there is; the surest sign decides, and evidence for a family of other channels is not believed.

    Args:
        known: catalog lookup by SHA-256; the package's own catalog when None.
    """
    stem = described.header.path.stem
    channels = described.network.latent_channels
    by_name = family_in_text(stem)
    if by_name is not None and not _has_such_a_vae(by_name, described):
        by_name = None
    signs = [sign for sign in _signs(described, channels, sha256, known) if _is_usable(sign.family, described)]
    config = _sign_in_config(described, channels, by_name)
    if isinstance(config, _Sign):
        signs.append(config)
    elif config is not None and config.is_foreign and described.keys.is_wan:
        signs = []  # its network alone does not tell
    if signs:
        return _decided(signs, by_name)
    candidates, explanation = _open_question(described, channels)
    doubt = None
    if isinstance(config, _Unbelieved) and candidates:
        explanation = doubt = config.explanation
        candidates = () if config.is_foreign else candidates
    guess = by_name if by_name in candidates else None
    return Verdict(None, "ambiguous", explanation, candidates, guess, doubt)


def _decided(signs: list[_Sign], by_name: Family | None) -> Verdict:
    """What the first sign says, and whether another one, or the file's name, says otherwise."""
    first, *others = signs
    family, explanation = first.family, first.explanation
    against = next((sign.explanation for sign in others if not sign.family.shares_latents(family)), None)
    if against is None and first.certainty == "metadata" and by_name and not by_name.shares_latents(family):
        against = f"Its name says {by_name.name}."
    if against is not None:
        explanation = f"{explanation} But that is not certain: {against[0].lower()}{against[1:]}"
    doubt = None if against is None else explanation
    return Verdict(family, first.certainty, explanation, (family,), family, doubt)


def _signs(described: Described, channels: int, sha256: str | None, known: Lookup | None) -> Iterator[_Sign]:
    """What tells the family, the surest first."""
    if sha256 is not None and (entry := (known or _catalog_lookup)(sha256)) is not None:
        family = FAMILIES.get(entry.family)
        if family is not None and family.latent_channels == channels:
            yield _Sign(family, "hash", f"This is {entry.title}: its SHA-256 is in the catalog.")
    for family in families_of(channels, described.architecture):
        if family.deviation and not described.keys.is_taesd:
            yield _Sign(family, "tensors", f"Only the VAE of {family.name} and its relatives has this network.")
        if family.packing is not None and family.packing == described.packing:
            explanation = f"It holds the statistics of {family.name}'s latents ({quote(family.packing.mean)})."
            yield _Sign(family, "tensors", explanation)
        if family.packing is not None and described.keys.is_taesd:
            explanation = f"Only the TAESD of {family.name} has {channels} latent channels."
            yield _Sign(family, "tensors", explanation)
    header = described.header
    if (found := _family_in_metadata(header.metadata, channels)) is not None:
        yield _Sign(found[0], "metadata", f"The file's metadata says {found[0].name} ({found[1]}).")
    shapes = {name: info.shape for name, info in header.tensors.items()}
    if (family := family_of_diffusion_model(shapes, channels)) is not None:
        yield _Sign(family, "checkpoint", f"The diffusion model in the same checkpoint is {family.name}.")


def _is_usable(family: Family, described: Described) -> bool:
    if not _has_such_a_vae(family, described):
        return False
    return described.keys.is_taesd or family.packing is None or family.packing == described.packing


def _has_such_a_vae(family: Family, described: Described) -> bool:
    found = described.network.latent_channels, described.architecture
    return (family.latent_channels, family.architecture) == found


def _open_question(described: Described, channels: int) -> tuple[tuple[Family, ...], str]:
    """The families that it may be, and the sentence for a VAE of which nothing tells the family."""
    families = families_of(channels, described.architecture)
    candidates = tuple(family for family in families if _is_usable(family, described))
    names = join([family.name for family in families], "and")
    if not families:
        return (), f"No known family of VAEs has {channels} latent channels; {_BY_HAND}."
    if unknown := list(described.keys.beside):
        return (), (
            f"It has the shape of a VAE of {join([family.name for family in families], 'or')}, but tensors beside "
            f"it that no such VAE has ({quote_some(unknown)}), so its latents may be other ones; {_BY_HAND}."
        )
    if described.keys.is_taehv:
        return candidates, (
            f"The TAESDs of other video models (HunyuanVideo, CogVideoX) have the same shape as that of {names}, and "
            "nothing in the file tells."
        )
    if not candidates:
        packing = families[0].packing
        assert packing is not None
        return (), (
            f"It looks like {names}'s VAE, but the statistics of its latents ({quote(packing.mean)}, "
            f"{quote(packing.variance)}) are missing; use a file that has them, or {_BY_HAND}."
        )
    return candidates, f"The VAEs of {names} have the same shape, and nothing else in the file tells."


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


def _family_from_factors(name: str | None, channels: int, scaling: object, shift: object) -> Family | None:
    scale = number(scaling)
    if scale is None or scale <= 0:
        return None
    return family_by_factors(channels, scale, number(shift) or 0.0, name)


def _family_in_metadata(metadata: Mapping[str, str], channels: int) -> tuple[Family, str] | None:
    """The family that a safetensors file's metadata tells, and the entry that tells it."""
    own = metadata.get("vae_guard.family")
    if own is not None and not (own.isprintable() and len(own) <= 40):  # it is shown as it is
        own = None
    if "scaling_factor" in metadata:
        family = _family_from_factors(own, channels, metadata["scaling_factor"], metadata.get("shift_factor"))
        if family is not None:
            return family, f"scaling_factor {family.scaling_factor:g}"
    for key in ("vae_guard.family", "modelspec.architecture", "ss_base_model_version", "modelspec.title"):
        text = metadata.get(key, "")
        found = FAMILIES.get(text) or family_in_text(text)
        if found is not None and found.latent_channels == channels:
            return found, f"{key} {quote(text)}"
    return None


def _sign_in_config(described: Described, channels: int, by_name: Family | None) -> _Sign | _Unbelieved | None:
    """What the ``config.json`` of diffusers beside a file says, if it is this file's and fits.

    It is that of the file that diffusers names, or of the only weights in its folder.
    """
    path = described.header.path
    config = _read_config(path.parent / "config.json")
    if described.keys.is_wan:
        return _sign_of_statistics(config, described)
    if config.get("_class_name") != "AutoencoderKL" or config.get("latent_channels") != channels:
        return None
    own = path.name.startswith("diffusion_pytorch_model")
    if not own and (described.keys.layout != "diffusers" or not _is_alone(path)):
        return None
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        return _Unbelieved(
            "The config.json beside the file gives its latents a mean and deviation for each channel, as no known "
            f"family has; {_BY_HAND}.",
            is_foreign=True,
        )
    # diffusers leaves out a scaling_factor that is its default, that of SD1 and SD2
    scaling = config.get("scaling_factor", 0.18215 if channels == 4 else None)
    family = _family_from_factors(None, channels, scaling, config.get("shift_factor"))
    if family is None:
        return None
    if not own and by_name is not None and not by_name.shares_latents(family):
        return _Unbelieved(
            f"The config.json beside the file says {family.name} and the file's own name {by_name.name}, so the "
            "config.json may be another file's and was not believed.",
            is_foreign=False,
        )
    return _Sign(family, "metadata", f"The config.json beside the file says {family.name}.")


def _sign_of_statistics(config: dict[str, Any], described: Described) -> _Unbelieved | None:
    """Where diffusers' ``config.json`` beside the file gives its latents other numbers than those of the family."""
    classes = ("AutoencoderKLWan", "AutoencoderKLQwenImage")
    if config.get("_class_name") not in classes or config.get("z_dim") != described.network.latent_channels:
        return None
    for family in families_of(described.network.latent_channels, described.architecture):
        for name, known in (("latents_mean", family.mean), ("latents_std", family.deviation)):
            given = config.get(name)
            numbers = [number(value) for value in given] if isinstance(given, list) else list(known)
            if len(numbers) != len(known) or any(
                x is None or not math.isclose(x, y, rel_tol=1e-3) for x, y in zip(numbers, known, strict=True)
            ):
                return _Unbelieved(
                    f"The config.json beside the file gives its latents another {name} than {family.name} has; "
                    f"{_BY_HAND}.",
                    is_foreign=True,
                )
    return None


def state_beside(path: Path) -> object:
    """What lies beside a weights file and has a say in its verdict: another value where that may have changed."""
    try:
        config = (path.parent / "config.json").stat()
    except OSError:
        return None
    return config.st_size, config.st_mtime_ns, _is_alone(path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > 1_000_000:  # reading a pipe would block
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _is_alone(path: Path) -> bool:
    try:
        others = [other for other in path.parent.iterdir() if other.suffix.lower() in _WEIGHTS]
    except OSError:
        return False
    return len(others) == 1
