"""Haoming02's Forge Neo: Forge's VAE object and memory manager, with the latent format beside the network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from modules import paths, paths_internal, processing, sd_vae, shared
from modules_forge import main_entry
from torch import Tensor

from vae_lib.catalog import FAMILIES, LatentSpace
from vae_lib.errors import InputError
from vae_lib.guard.host import Folders
from vae_lib.guard.seam import Halves, Seam
from vae_lib.guard.whole_vae import WholeVAE
from vae_lib.hosts import forge, picture_functions, unknown
from vae_lib.hosts.sd_vae_setting import vae_is_gone


@dataclass(frozen=True)
class NeoVAE(forge.ForgeVAE):
    """Implements ``HostVAE``: the network's ``latent_format`` has the factors, and ``bn`` those of packed latents."""

    @property
    def seam(self) -> Seam:
        """Wan's decoder is called frame by frame: only the methods around it see whether there is one picture."""
        kind = WholeVAE if getattr(self.owner, "is_wan", False) else Halves
        return kind(self.module, ("backend",))

    @property
    def space(self) -> LatentSpace:
        module: Any = self.module
        if isinstance(norm := getattr(module, "bn", None), torch.nn.BatchNorm2d):
            family = FAMILIES["Mugen" if getattr(module, "mugen", False) else "FLUX.2"]
            return LatentSpace.of(family, {f"bn.{name}": value.cpu() for name, value in norm.named_buffers()})
        form = module.latent_format
        if hasattr(form, "latents_mean"):
            mean, deviation = (x.float().view(1, -1, 1, 1) for x in (form.latents_mean, form.latents_std))
            return LatentSpace(float(form.scale_factor) / deviation, mean)
        return LatentSpace(float(form.scale_factor), float(getattr(form, "shift_factor", 0.0)))

    def identity(self) -> str:
        """A VAE that a request over the API overrides is another one, of which Neo keeps no name."""
        return "overridden" if sd_vae.base_vae is not None else super().identity()


class Host(forge.Host):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "Forge Neo"
    host_vae = NeoVAE
    roughest = "RGB"

    def folders(self) -> Folders:
        return Folders(Path(paths.data_path), Path(sd_vae.vae_path), Path(paths_internal.models_path) / "VAE-taesd")

    def choose_modules(self, paths: Sequence[str]) -> None:
        """For the preset too: else its next change would bring the other ones back."""
        main_entry.modules_change(list(paths), shared.opts.forge_preset)

    vae_settings: ClassVar[Mapping[str, type]] = {**forge.Host.vae_settings, "sd_vae": str}

    def vae_of_generation(self) -> Mapping[str, Any]:
        """With the file that a request over the API put in the place of the VAE for this generation, if it did."""
        given = processing._overridden_modules if sd_vae.base_vae is not None else None
        return {**super().vae_of_generation(), **({"sd_vae": given[-1]} if given else {})}

    def as_sampled(self, latents: Tensor) -> Tensor:
        """Models whose VAE is Wan's have an axis of time."""
        return latents.unsqueeze(2) if shared.sd_model.is_wan else latents

    def check_vae_is_there(self, chosen: Mapping[str, Any], known_hash: str | None) -> None:
        super().check_vae_is_there(chosen, known_hash)
        path = chosen.get("sd_vae")
        if path is not None and not (os.path.isfile(path) and forge.is_in_a_vae_folder(path)):
            raise InputError(vae_is_gone(os.path.basename(path)))

    # settings and arguments that it does not have

    def repair_dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    def checks_numbers(self) -> bool:
        return True

    def numeric_error(self, message: str) -> None:
        """It makes the picture black, and goes on."""


def is_here() -> bool:
    return unknown.forge_version() == "neo" and not picture_functions.missing()
