"""What network a file holds, by its header: the one place where a VAE is taken on or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import torch

from vae_lib.catalog import Architecture, Family, Packing, families_of
from vae_lib.checkpoints.config_file import ConfigFile, config_beside
from vae_lib.checkpoints.foreign import describe_foreign, describe_other_vae
from vae_lib.checkpoints.header import Header, quote, quote_some
from vae_lib.checkpoints.layouts import KeyMap, map_keys
from vae_lib.errors import CheckpointError, UnknownVAE
from vae_lib.networks import TAESD, Network, WanConfig, of_video, recognise
from vae_lib.networks.config import MAX_CHANNELS

VAE = Network | TAESD

_SHARD = re.compile(r"\d{5}-of-(?!00001)\d{5}\.\w+$")
_MIDDLE_ATTENTION = ".mid.attn_1."
_KNOWN = "choose a VAE of Stable Diffusion 1, 2, XL or 3, of FLUX or of Qwen-Image"


@dataclass(frozen=True)
class Described:
    """A VAE in a file, of which only the header was read.

    Attributes:
        keys: where its tensors are in the file.
        network: on the meta device; each of its tensors is in the file, of this shape.
        dtype: one dtype for all the weights that loses nothing and that convolutions run in.
        packing: how the sampler's latents are packed, where the file holds the statistics that this takes.
        config: what the ``config.json`` beside the file says of it.
    """

    header: Header
    keys: KeyMap
    network: VAE
    dtype: torch.dtype
    packing: Packing | None
    config: ConfigFile

    @property
    def exact(self) -> Network | None:
        """The network, if it is a full VAE."""
        return None if isinstance(self.network, TAESD) else self.network

    def for_video(self) -> Described:
        """The same with the network of videos.

        Raises:
            CheckpointError: when this VAE has none.
        """
        name, exact = self.header.path.name, self.exact
        if exact is None:
            raise CheckpointError(f"{name} is a TAESD, which is for single pictures here; use the full VAE.")
        keys = self.keys.for_video()
        shapes = {key: keys.shape(key, self.header.tensors[source].shape) for key, source in keys.sources.items()}
        try:
            network = of_video(exact.config, shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from error
        _check_shapes(name, shapes, {key: tuple(value.shape) for key, value in network.state_dict().items()})
        return replace(self, keys=keys, network=network)

    @property
    def architecture(self) -> Architecture:
        """That of the VAE whose latents these are."""
        return "WanVAE" if self.keys.is_wan or self.keys.is_taehv else "AutoencoderKL"

    def may_be_of(self, family: Family) -> bool:
        """Whether a family's VAE has this network; of a TAESD, whether its latents have this shape."""
        network = self.network
        mine = network.latent_channels, self.architecture, network.downscale
        if mine != (family.latent_channels, family.architecture, family.downscale):
            return False
        return isinstance(network, TAESD) or self.has_quant_convs == family.quant_convs

    @property
    def has_quant_convs(self) -> bool:
        """Whether each half has its 1x1 convolution."""
        network = self.exact
        if network is None:
            return False
        halves = ((network.encoder, network.quant_conv), (network.decoder, network.post_quant_conv))
        return all(conv is not None for half, conv in halves if half is not None)


def describe(header: Header) -> Described:
    """The VAE in a file, after checking that all of it is there and that we have its network.

    Raises:
        UnknownVAE: it is a VAE of a kind that we have no network for.
        CheckpointError: there is none, or it is incomplete, damaged or of a dtype that cannot be used.
    """
    keys = find_vae(header)
    name = header.path.name
    if _SHARD.search(name):
        raise CheckpointError(
            f"{name} is one of several files that a VAE was split into, and VAE Guard reads it from one; choose a file "
            "that holds all of it."
        )
    shapes = {key: keys.shape(key, header.tensors[source].shape) for key, source in keys.sources.items()}
    between_frames = {key: header.tensors[source].shape for key, source in keys.between_frames.items()}
    network, config = _network(header.path, {**shapes, **between_frames}, keys)
    _check_shapes(name, shapes, {key: tuple(value.shape) for key, value in network.state_dict().items()})
    packing = None if keys.is_taesd or keys.is_wan else _packing(header, keys, network.latent_channels)
    return Described(header, keys, network, _dtype(header, keys), packing, config)


def find_vae(header: Header) -> KeyMap:
    """Where the VAE's tensors are in a file.

    Raises:
        UnknownVAE, CheckpointError: when there is none that we have a network for; it says what the file is instead.
    """
    if (what := describe_other_vae(header.tensors)) is not None:
        raise UnknownVAE(f"{header.path.name} is {what}, for which VAE Guard has no network; {_KNOWN}.")
    found = map_keys(header.tensors)
    if found is None:
        raise CheckpointError(f"{header.path.name} is {describe_foreign(header.tensors)}, not a VAE.")
    return found


def _network(path: Path, shapes: Mapping[str, tuple[int, ...]], keys: KeyMap) -> tuple[VAE, ConfigFile]:
    """The network, and the ``config.json`` beside the file as far as it describes this one."""
    name = path.name
    if keys.is_taesd:
        halves = {key.partition(".")[0] for key in shapes}
        if keys.is_taehv:
            _check_taehv(shapes, name)
        channels = _taesd_channels(shapes, name)
        with torch.device("meta"):
            return TAESD(channels, "encoder" in halves, "decoder" in halves, keys.is_taehv), ConfigFile()
    given = config_beside(path, keys.layout == "diffusers" or keys.is_wan)
    try:
        beside = given.checked(recognise(shapes, norm_groups=1)) if given.values else given
        network = recognise(shapes, beside.norm_groups)
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from error
    config = network.config
    if isinstance(config, WanConfig) and not (config.use_quant_conv and config.use_post_quant_conv):
        conv = "post_quant_conv" if config.use_quant_conv else "quant_conv"
        raise CheckpointError(f"{name} is an incomplete VAE: its '{conv}' is missing; use another copy of it.")
    return network, beside


def _check_taehv(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    if not shapes:
        raise CheckpointError(
            f"{name} holds only the encoder of a video model's TAESD (TAEHV), of which VAE Guard has only the decoder; "
            "use the file that holds both."
        )
    sides = shapes.get("decoder.1.weight", ())[1:2], shapes.get("decoder.22.weight", ())[:1]
    if all(sides) and sides != ((16,), (3,)):
        raise UnknownVAE(
            f"{name} is a TAESD of another video model than Wan 2.1 (TAEHV of {sides[0][0]} channels to {sides[1][0]}, "
            f"not 16 to 3), for which VAE Guard has no network; {_KNOWN}."
        )


def _taesd_channels(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    for key, axis in (("decoder.1.weight", 1), ("encoder.14.weight", 0)):
        if len(shapes.get(key, ())) == 4:
            channels = shapes[key][axis]
            if not 0 < channels <= MAX_CHANNELS:
                raise CheckpointError(f"{name} is damaged: a TAESD of {channels} latent channels.")
            return channels
    raise CheckpointError(f"{name} looks like a TAESD, but its first or last layers are missing.")


def _check_shapes(name: str, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = [key for key in wanted if key not in shapes]
    extra = [key for key in shapes if key not in wanted]
    if missing == [key for key in wanted if _MIDDLE_ATTENTION in key] != []:
        raise UnknownVAE(
            f"{name} is a VAE without attention in its middle, for which VAE Guard has no network; {_KNOWN}."
        )
    if missing:
        raise CheckpointError(f"{name} is an incomplete VAE: {quote_some(missing)} missing; use another copy of it.")
    if extra:
        raise UnknownVAE(f"{name} is a VAE of an unknown kind: it has {quote_some(extra)}; {_KNOWN}.")
    if wrong := [key for key in wanted if shapes[key] != wanted[key]]:
        raise CheckpointError(
            f"{name} is damaged or of an unknown kind: {quote(wrong[0])} has shape {shapes[wrong[0]]} where "
            f"{wanted[wrong[0]]} is expected ({len(wrong)} such tensors); use another copy of it."
        )


def _packing(header: Header, keys: KeyMap, channels: int) -> Packing | None:
    for family in families_of(channels):
        packing = family.packing
        if packing is None or not {packing.mean, packing.variance} <= keys.beside.keys():
            continue
        for key in (packing.mean, packing.variance):
            shape = header.tensors[keys.beside[key]].shape
            if shape != (family.sampler_channels,):
                raise CheckpointError(
                    f"{header.path.name} is damaged: {quote(key)} has shape {shape} where "
                    f"({family.sampler_channels},) is expected."
                )
        return packing
    return None


def _dtype(header: Header, keys: KeyMap) -> torch.dtype:
    dtypes = []
    for source in keys.sources.values():
        stored = getattr(torch, header.tensors[source].dtype, None)
        if not isinstance(stored, torch.dtype) or not stored.is_floating_point:
            raise CheckpointError(
                f"{header.path.name} stores its weights as {header.tensors[source].dtype}, "
                "which cannot be used; choose an fp16, bf16 or fp32 file."
            )
        dtypes.append(stored if stored.itemsize > 1 else torch.float16)
    widest = reduce(torch.promote_types, dtypes)
    return torch.float32 if widest == torch.float64 else widest
