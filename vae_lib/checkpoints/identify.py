"""What a VAE file is, and how sure of that one can be."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.families import FAMILIES, Family
from vae_lib.checkpoints.foreign import describe_foreign
from vae_lib.checkpoints.header import Header, TensorInfo, quote
from vae_lib.checkpoints.layouts import KeyMap, Layout, ldm_shape, map_keys
from vae_lib.checkpoints.source import read_header
from vae_lib.errors import CheckpointError, VAEGuardError
from vae_lib.files import PathLike
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.networks.config import MAX_CHANNELS

Kind = Literal["AutoencoderKL", "TAESD", "TAESD encoder", "TAESD decoder"]
Certainty = Literal["hash", "metadata", "checkpoint", "ambiguous"]


class KnownFile(Protocol):
    """What a catalog has to say of a file; ``family`` is a name in ``FAMILIES``."""

    @property
    def title(self) -> str: ...

    @property
    def family(self) -> str: ...


Lookup = Callable[[str], "KnownFile | None"]


@dataclass(frozen=True)
class Identity:
    """What a VAE file is.

    ``family`` is None when the file leaves it open; ``family_name`` then names the candidates, and ``guess``
    is the one that the file's name suggests, if any. ``scaling_factor`` and ``shift_factor`` are those of
    the sampler's latents, None when the family is open; a TAESD takes those latents as they are, so its
    factors are 1 and 0. ``parameters`` counts the VAE's own numbers, ``file_size`` is in bytes, ``dtype`` is
    torch's name (several are joined by commas).
    """

    path: Path
    layout: Layout
    kind: Kind
    latent_channels: int
    dtype: str
    parameters: int
    file_size: int
    sha256: str | None
    family: Family | None
    family_name: str
    certainty: Certainty
    explanation: str
    scaling_factor: float | None
    shift_factor: float | None
    guess: Family | None = None

    @property
    def short_hash(self) -> str | None:
        """The first ten digits of the SHA-256, the short hash that the WebUI shows."""
        return None if self.sha256 is None else self.sha256[:10]

    @property
    def is_taesd(self) -> bool:
        return self.kind != "AutoencoderKL"


def identify(path: PathLike, *, hash_file: bool = True, known: Lookup | None = None) -> Identity:
    """Say what a VAE file is. Tensors are not read, except of pickles in the old format.

    The family is taken, in this order, from the file's hash in the catalog, the file's metadata, the
    diffusion model beside the VAE in a whole checkpoint, and the ``config.json`` of diffusers beside the
    file. Shapes alone cannot tell it: SD1, SD2 and SDXL share them, and so do SD3 and FLUX.1.

    Args:
        hash_file: compute the SHA-256, which reads the whole file; without it the catalog is not asked.
        known: catalog lookup by SHA-256; the package's own catalog when None.

    Raises:
        CheckpointError: when the file cannot be read or holds no VAE.
    """
    header = read_header(path)
    return identify_header(header, find_vae(header), hash_file=hash_file, known=known)


def find_vae(header: Header) -> KeyMap:
    """Where the VAE's tensors are in a file.

    Raises:
        CheckpointError: when there is none; it says what the file is instead.
    """
    found = map_keys(header.tensors)
    if found is None:
        raise CheckpointError(f"{header.path.name} is {describe_foreign(header.tensors)}, not a VAE.")
    return found


def vae_shapes(header: Header, found: KeyMap) -> dict[str, tuple[int, ...]]:
    """Our parameter names -> shapes, as in the ldm layout."""
    return {key: ldm_shape(key, header.tensors[source].shape) for key, source in found.sources.items()}


def config_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> AutoencoderKLConfig:
    """The configuration of an AutoencoderKL; ``name`` is the file's, for the sentence when there is none.

    Raises:
        CheckpointError: as ``AutoencoderKLConfig.from_state_dict``.
    """
    try:
        return AutoencoderKLConfig.from_state_dict(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def taesd_channels(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Latent channels of a TAESD.

    Raises:
        CheckpointError: when the layer that tells is missing or not a convolution.
    """
    for key, axis in (("decoder.1.weight", 1), ("encoder.14.weight", 0)):
        if len(shapes.get(key, ())) == 4:
            channels = shapes[key][axis]
            if not 0 < channels <= MAX_CHANNELS:
                raise CheckpointError(f"{name} is damaged: a TAESD of {channels} latent channels.")
            return channels
    raise CheckpointError(f"{name} looks like a TAESD, but its first or last layers are missing.")


def identify_header(
    header: Header, found: KeyMap, *, hash_file: bool, known: Lookup | None = None
) -> Identity:
    """``identify`` of a header that was read already."""
    shapes = vae_shapes(header, found)
    infos = [header.tensors[source] for source in found.sources.values()]
    kind: Kind = "AutoencoderKL"
    if found.is_taesd:
        channels = taesd_channels(shapes, header.path.name)
        halves = [half for half in ("encoder", "decoder") if any(key.startswith(half) for key in shapes)]
        kind = "TAESD" if len(halves) == 2 else "TAESD encoder" if halves == ["encoder"] else "TAESD decoder"
    else:
        channels = config_of(shapes, header.path.name).latent_channels

    sha256 = None
    if hash_file:
        try:
            sha256 = sha256_of(header.path)
        except OSError as error:
            raise CheckpointError(f"{header.path} cannot be read: {error.strerror or error}.") from error
    family, certainty, explanation = _family(header, found, channels, sha256, known or _catalog_lookup)
    candidates = [candidate for candidate in FAMILIES.values() if candidate.latent_channels == channels]
    family_name = _join([candidate.name for candidate in candidates], "or") or "unknown"
    factors: tuple[float | None, float | None] = (None, None)
    if family is not None:
        family_name, factors = family.name, (family.scaling_factor, family.shift_factor)
    if found.is_taesd:
        factors = (1.0, 0.0)
    return Identity(
        path=header.path,
        layout=found.layout,
        kind=kind,
        latent_channels=channels,
        dtype=_dtypes(infos),
        parameters=sum(math.prod(info.shape) for info in infos),
        file_size=header.file_size,
        sha256=sha256,
        family=family,
        family_name=family_name,
        certainty=certainty,
        explanation=explanation,
        scaling_factor=factors[0],
        shift_factor=factors[1],
        guess=family or _family_in_name(header.path.stem, candidates),
    )


def _dtypes(infos: Iterable[TensorInfo]) -> str:
    return ", ".join(sorted({info.dtype for info in infos}))


def _join(names: list[str], word: str) -> str:
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _catalog_lookup(sha256: str) -> KnownFile | None:
    try:
        from vae_lib.hub.catalog import load_catalog  # late: checkpoints must work without the hub
    except ImportError:
        return None
    try:
        return load_catalog().by_sha256(sha256)
    except VAEGuardError:  # no TOML reader, a spoilt catalog: the file can still be used
        return None


def _family(
    header: Header, found: KeyMap, channels: int, sha256: str | None, known: Lookup
) -> tuple[Family | None, Certainty, str]:
    """The family with how it was found; evidence for a family of other latent channels is not believed."""
    if sha256 is not None and (entry := known(sha256)) is not None:
        family = FAMILIES.get(entry.family)
        if family is not None and family.latent_channels == channels:
            return family, "hash", f"This is {entry.title}: its SHA-256 is in the catalog."
    told = _family_in_metadata(header.metadata, channels)
    if told is not None:
        return told[0], "metadata", f"The file's metadata says so ({told[1]})."
    family = _family_of_diffusion_model(header.tensors)
    if family is not None and family.latent_channels == channels:
        return family, "checkpoint", f"The diffusion model in the same checkpoint is {family.name}."
    # only a file as diffusers saves it: in a folder of many VAEs, a config.json is some other one's
    is_diffusers = found.layout == "diffusers" or header.path.name.startswith("diffusion_pytorch_model")
    family = _family_in_config(header.path.parent / "config.json", channels) if is_diffusers else None
    if family is not None:
        return family, "metadata", "The config.json beside the file says so."
    names = [family.name for family in FAMILIES.values() if family.latent_channels == channels]
    explanation = f"No known family has {channels} latent channels; give the scaling factor yourself."
    if names:
        explanation = (
            f"The VAEs of {_join(names, 'and')} have the same shape, and nothing else in the file tells."
        )
    return None, "ambiguous", explanation


def _number(text: object) -> float | None:
    """A finite number, or None."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        return None
    try:
        number = float(text)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _family_from_factors(name: str | None, channels: int, scaling: object, shift: object) -> Family | None:
    """The family of this name and these factors, or one of its own where no known family has them."""
    scale, offset = _number(scaling), _number(shift) or 0.0
    if scale is None or scale <= 0:
        return None
    for family in FAMILIES.values():
        if (
            family.latent_channels == channels
            and name in (None, family.name)
            and math.isclose(family.scaling_factor, scale, rel_tol=1e-4)
            and math.isclose(family.shift_factor, offset, rel_tol=1e-4, abs_tol=1e-6)
        ):
            return family
    return Family(name or "its own", channels, scale, offset)


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
        family = FAMILIES.get(text) or _family_in_text(text)
        if family is not None and family.latent_channels == channels:
            return family, f"{key} {quote(text)}"
    return None


# modelspec says stable-diffusion-xl-v1-base, kohya's scripts say sdxl_base_v1-0, people say SDXL.
# The order matters.
_FAMILY_WORDS = tuple(
    (FAMILIES[name], re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("FLUX.1", r"(?<![a-z])flux[-_. ]?1|(?<![a-z])flux(?![a-z0-9])(?![-_. ]?2)|taef1"),
        ("SD3", r"(?<![a-z])(stable[-_ ]diffusion|sd|taesd)[-_ ]?v?3([._-]?5)?(?![0-9])"),
        ("SDXL", r"sdxl|stable[-_ ]diffusion[-_ ]xl|(?<![a-z])sd[-_]?xl"),
        ("SD2", r"(?<![a-z])(stable[-_ ]diffusion|sd)[-_ ]?v?2([._-]?[01])?(?![0-9])"),
        ("SD1", r"(?<![a-z])(stable[-_ ]diffusion|sd)[-_ ]?v?1([._-]?[1-5])?(?![0-9])"),
        ("SD1", r"ft[-_](mse|ema)|kl[-_]f8|(?<![a-z])taesd(?!xl|3)"),
    )
)


def _family_in_text(text: str) -> Family | None:
    return next((family for family, pattern in _FAMILY_WORDS if pattern.search(text[:200])), None)


def _family_in_name(stem: str, candidates: list[Family]) -> Family | None:
    family = _family_in_text(stem)
    return family if family in candidates else None


def _family_of_diffusion_model(tensors: Mapping[str, TensorInfo]) -> Family | None:
    """The family of the UNet or transformer in a checkpoint, by its blocks and its text context's width."""
    widths = {
        info.shape[1]
        for name, info in tensors.items()
        if name.startswith("model.diffusion_model.")
        and name.endswith(".attn2.to_k.weight")
        and len(info.shape) == 2
    }
    for width, family in ((768, "SD1"), (1024, "SD2"), (2048, "SDXL"), (1280, "SDXL")):
        if width in widths:
            return FAMILIES[family]
    for name in tensors:
        if name.startswith("conditioner.embedders."):
            return FAMILIES["SDXL"]
        if name.startswith("model.diffusion_model.joint_blocks."):
            return FAMILIES["SD3"]
        if name.startswith("model.diffusion_model.double_blocks."):
            return FAMILIES["FLUX.1"]
    return None


def _family_in_config(path: Path, channels: int) -> Family | None:
    """The family that the ``config.json`` of a diffusers VAE tells, if it is one and fits."""
    try:
        if not path.is_file() or path.stat().st_size > 1_000_000:  # reading a pipe would block
            return None
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKL":
        return None
    if config.get("latent_channels") != channels:
        return None
    # diffusers leaves out a scaling_factor that is its default, that of SD1 and SD2
    scaling = config.get("scaling_factor", 0.18215 if channels == 4 else None)
    return _family_from_factors(None, channels, scaling, config.get("shift_factor"))
