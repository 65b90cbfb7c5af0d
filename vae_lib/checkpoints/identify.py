"""What a VAE file is, and how sure of that one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from vae_lib.catalog import Architecture, Family, families_of
from vae_lib.checkpoints.digest import sha256_of
from vae_lib.checkpoints.evidence import Certainty, Lookup, join, judge
from vae_lib.checkpoints.layouts import Layout
from vae_lib.checkpoints.network import Described, describe
from vae_lib.checkpoints.numbers import FACTOR, check_numbers, read_statistics
from vae_lib.checkpoints.source import open_weights
from vae_lib.errors import CheckpointError
from vae_lib.files import PathLike
from vae_lib.networks import TAESD

Kind = Literal["AutoencoderKL", "WanVAE", "TAESD", "TAESD encoder", "TAESD decoder"]


@dataclass(frozen=True)
class Identity:
    """What a VAE file is.

    ``family`` is None when the file leaves it open; ``family_name`` then names those that it may be, which are the
    ``candidates``, the likeliest first (none where something says that it is another's), and ``guess`` is the one of
    them that only names speak for, if any. ``scaling_factor`` and ``shift_factor`` are those of the sampler's latents,
    None when the family is open or each channel has its own; a TAESD takes those latents as they are, so its factors
    are 1 and 0. ``downscale`` is pixels per latent along each side, ``parameters`` counts the VAE's own numbers,
    ``file_size`` is in bytes, ``dtype`` is torch's name (several are joined by commas).
    """

    path: Path
    layout: Layout
    kind: Kind
    latent_channels: int
    downscale: int
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
    candidates: tuple[Family, ...] = ()
    guess: Family | None = None

    @property
    def short_hash(self) -> str | None:
        """The first ten digits of the SHA-256, the short hash that the WebUI shows."""
        return None if self.sha256 is None else self.sha256[:10]

    @property
    def is_taesd(self) -> bool:
        return self.kind.startswith("TAESD")

    @property
    def architecture(self) -> Architecture:
        """That of the VAE whose latents these are."""
        return "WanVAE" if self.kind == "WanVAE" or self.layout == "taehv" else "AutoencoderKL"


def identify(path: PathLike, *, hash_file: bool = True, known: Lookup | None = None) -> Identity:
    """Say what a VAE file is; what it calls a VAE, ``load_vae`` loads, and both refuse with the same sentence.

    The family is taken from the file's hash in the catalog, its network, the statistics of its latents beside the
    VAE, the diffusion model in the same checkpoint, the file's metadata, and the ``config.json`` of diffusers beside
    the file, where these agree. Shapes alone do not tell SD1, SD2 and SDXL apart, nor SD3 and FLUX.1.

    Args:
        hash_file: read the file: compute the SHA-256, ask the catalog for it, and check that the weights are
            numbers. Without it only the header and a few numbers are read (and pickles in the old format).
        known: catalog lookup by SHA-256; the package's own catalog when None.

    Raises:
        CheckpointError: when the file cannot be read or holds no VAE that we can run.
    """
    with open_weights(path) as weights:
        described = describe(weights.header)
        statistics = read_statistics(weights, described)
        if hash_file:
            check_numbers(weights, described)
    return identify_described(described, statistics, hash_file=hash_file, known=known)


def identify_described(
    described: Described, statistics: Mapping[str, Tensor], *, hash_file: bool, known: Lookup | None = None
) -> Identity:
    """``identify`` of a header that was read and found good already, with what ``read_statistics`` gives."""
    header, network, keys = described.header, described.network, described.keys
    infos = [header.tensors[source] for source in keys.sources.values()]
    kind: Kind = described.architecture
    if isinstance(network, TAESD):
        kind = "TAESD encoder" if network.decoder is None else "TAESD decoder" if network.encoder is None else "TAESD"
    sha256 = None
    if hash_file:
        try:
            sha256 = sha256_of(header.path)
        except OSError as error:
            raise CheckpointError(f"{header.path} cannot be read: {error.strerror or error}.") from error
    channels = network.latent_channels
    factor = statistics.get(FACTOR)
    found = judge(described, sha256, known, None if factor is None else float(factor))
    family = found.family
    factors: tuple[float | None, float | None] = (None, None)
    if keys.is_taesd:
        factors = (1.0, 0.0)
    elif family is not None and not family.is_by_channel:
        factors = family.scaling_factor, family.shift_factor
    shaped = filter(described.may_be_of, families_of(channels, described.architecture))
    names = join([family.name for family in found.candidates or shaped], "or") or "unknown"
    explanation = found.explanation
    if not keys.is_taesd and (network.encoder is None or network.decoder is None):
        half, verb = ("an encoder", "decode") if network.decoder is None else ("a decoder", "encode")
        explanation = f"{explanation} It holds only {half}, so it cannot {verb}."
    return Identity(
        path=header.path,
        layout=keys.layout,
        kind=kind,
        latent_channels=channels,
        downscale=network.downscale,
        dtype=", ".join(sorted({info.dtype for info in infos})),
        parameters=sum(math.prod(info.shape) for info in infos),
        file_size=header.file_size,
        sha256=sha256,
        family=family,
        family_name=names if family is None else family.name,
        certainty=found.certainty,
        explanation=explanation,
        scaling_factor=factors[0],
        shift_factor=factors[1],
        candidates=found.candidates,
        guess=found.guess,
    )
