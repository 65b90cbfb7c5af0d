"""The ``config.json`` of diffusers beside a file of weights: whether it is this file's, and what it says.

Fields are those of diffusers' AutoencoderKL, AutoencoderKLWan and AutoencoderKLQwenImage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_lib.catalog.names import is_weights
from vae_lib.networks import AutoencoderKLConfig, Network
from vae_lib.networks.config import NORM_GROUPS

_MOST_BYTES = 1_000_000
_OWN = re.compile(r"diffusion_pytorch_model(\.[\w-]+)?\.(safetensors|bin)")  # with a variant: fp16
_NUMBERED = re.compile(r"\(\d+\)$")  # a second download, of which the config.json need not be
_CLASSES = {"AutoencoderKL": "latent_channels", "AutoencoderKLWan": "z_dim", "AutoencoderKLQwenImage": "z_dim"}


@dataclass(frozen=True)
class ConfigFile:
    """What a ``config.json`` says of the file beside it: ``values`` is empty where there is none that it may believe.

    ``remark`` is a sentence where there is one, and it describes another VAE.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    remark: str | None = None

    @property
    def norm_groups(self) -> int:
        """Groups of the norms; those of all published VAEs where it does not say, or says what cannot be."""
        groups = self.values.get("norm_num_groups", NORM_GROUPS)
        return groups if type(groups) is int and groups > 0 else NORM_GROUPS

    def checked(self, network: Network) -> ConfigFile:
        """The same if it describes ``network``, else one that says nothing but why."""
        wrong = next((name for name, value in _shape(network).items() if self.values.get(name, value) != value), None)
        if wrong is None:
            return self
        given = json.dumps(self.values[wrong])[:60]
        return ConfigFile(remark=f"The config.json beside the file is another VAE's: it gives {wrong} as {given}.")


def config_beside(path: Path, is_of_diffusers: bool) -> ConfigFile:
    """That of the file which diffusers names, or of the only weights in its folder, in diffusers' layout."""
    is_own = _OWN.fullmatch(path.name) is not None
    values = read_json(path.parent / "config.json")
    if values.get("_class_name") not in _CLASSES or not (is_own or (is_of_diffusers and _is_alone(path))):
        return ConfigFile()
    if _NUMBERED.search(path.stem):
        return ConfigFile(remark="The config.json beside the file may be that of another download of the same name.")
    return ConfigFile(values)


def state_beside(path: Path) -> object:
    """What lies beside a weights file and has a say in its verdict: another value where that may have changed."""
    folder, above = path.parent, path.parent.parent
    files = (folder / "config.json", folder / "model_index.json", above / "model_index.json")
    return (*map(_state, files), _is_alone(path))


def read_json(path: Path) -> dict[str, Any]:
    """A small file of settings; empty where it is none, or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:  # reading a pipe would block
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _shape(network: Network) -> dict[str, Any]:
    """What diffusers' config.json says of such a network, as far as the weights tell it."""
    config = network.config
    if not isinstance(config, AutoencoderKLConfig):
        return {"z_dim": network.latent_channels}
    quant_convs = {"use_quant_conv": config.use_quant_conv} if config.has_encoder else {}
    if config.has_decoder:
        quant_convs["use_post_quant_conv"] = config.use_post_quant_conv
    return {
        "_class_name": "AutoencoderKL",
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        **quant_convs,
    }


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_alone(path: Path) -> bool:
    try:
        return sum(is_weights(other.name) for other in path.parent.iterdir()) == 1
    except OSError:
        return False
