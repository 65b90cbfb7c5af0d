"""What AUTOMATIC1111's WebUI shares with those of its forks that sample as it does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from modules import (
    devices,
    hashes,
    infotext_utils,
    paths,
    paths_internal,
    sd_models,
    sd_samplers_common,
    sd_vae,
    shared,
)
from PIL import Image
from torch import Tensor

from vae_lib.guard import precision
from vae_lib.guard.host import Folders, Points
from vae_lib.hosts import picture_functions
from vae_lib.hosts.checkpoints_vae import CheckpointsVAE
from vae_lib.hosts.webui_family import WebUIFamily, api_arguments


class A1111Family(CheckpointsVAE, WebUIFamily):
    """Implements all of ``guard.host.Host`` and ``webui.host.WebUI`` that does not differ between them."""

    roughest = "Approx cheap"  # of the host's approximations of a picture

    def repair_dtypes(self) -> tuple[torch.dtype, ...]:
        if shared.opts.auto_vae_precision_bfloat16:
            return (torch.bfloat16,)
        return (torch.float32,) if shared.opts.auto_vae_precision else ()

    def checks_numbers(self) -> bool:
        return not shared.cmd_opts.disable_nan_check

    def numeric_error(self, message: str) -> Exception | None:
        error: Exception = devices.NansException(message)
        return error

    def wrap(self, points: Points) -> None:
        """Wrap the functions that decode or encode a picture; they bear the same names in the whole family."""
        for owner, name, wrapper in picture_functions.WRAPPED:
            self._patches.patch(owner, name, functools.partial(wrapper, points))

    def has_checkpoint(self, name: str) -> bool:
        return name in sd_models.checkpoint_aliases

    def prepare(self, p: Any, saved: bool | None) -> None:
        if saved is not None:
            p.save_samples = lambda **_: saved  # Neo says whether it is for a video

    def checkpoint_setting(self, name: str) -> Mapping[str, str]:
        wanted, chosen = sd_models.checkpoint_aliases.get(name), shared.opts.sd_model_checkpoint
        if wanted is None or (chosen and sd_models.get_closet_checkpoint_match(chosen) == wanted):
            return {}
        return {"sd_model_checkpoint": name}

    def preview(self, latents: Tensor) -> Image.Image | None:
        try:
            image: Image.Image = sd_samplers_common.single_sample_to_image(
                latents, sd_samplers_common.approximation_indexes[self.roughest]
            )
        except Exception:  # some families have none, and a fork none before its first generation
            return None
        return image

    def is_first_pass(self, p: Any) -> bool:
        return bool(getattr(p, "enable_hr", False)) and not getattr(p, "is_hr_pass", False)

    def folders(self) -> Folders:
        return Folders(
            Path(paths.data_path),
            Path(shared.cmd_opts.vae_dir or sd_vae.vae_path),
            Path(paths_internal.models_path) / "VAE-taesd",
        )

    def paste_field(self, component: Any, value_of: Callable[[dict[str, Any]], object], api: str) -> Any:
        return infotext_utils.PasteField(component, value_of, api=api)

    def has_api(self) -> bool:
        return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)

    def api_accounts(self) -> Mapping[str, str]:
        accounts = shared.cmd_opts.api_auth
        return dict(entry.split(":", 1) for entry in accounts.split(",")) if accounts else {}

    def on_api_arguments(self, title: str, convert: Callable[[Any], list[Any]]) -> None:
        """Have our ``args`` in ``alwayson_scripts`` converted before a generation over the API."""
        from modules.api.api import Api  # the host has imported it where there is an API

        self._patches.patch(Api, "init_script_args", functools.partial(api_arguments, title, convert))


def weights_identity(model: Any) -> str:
    """Of the VAE in use: of its file, or of the checkpoint that it came with."""
    path = sd_vae.loaded_vae_file
    if path is None:
        checkpoint = getattr(model, "sd_checkpoint_info", None)
        if known := getattr(checkpoint, "sha256", None):
            return str(known)
        path = getattr(checkpoint, "filename", "")
    return precision.identity(str(path), hashes.sha256)
