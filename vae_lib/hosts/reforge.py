"""reForge: A1111's model around ldm_patched's (ComfyUI's) VAE object, with Forge's memory manager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ldm_patched.modules import model_management
from ldm_patched.modules.sd import VAE
from modules import shared

from vae_lib.catalog import LatentSpace
from vae_lib.guard.host import HostVAE
from vae_lib.hosts import picture_functions
from vae_lib.hosts.first_stage import FirstStage
from vae_lib.hosts.forge_family import ForgeFamily


@dataclass(frozen=True)
class OwnedFirstStage(FirstStage):
    """Implements ``HostVAE``: the VAE object's network, and the scaling of the diffusion model's latent format."""

    owner: Any

    packages: ClassVar[Sequence[str]] = ("ldm_patched", "modules_forge", "ldm", "sgm", "modules")

    @property
    def module(self) -> Any:
        return self.owner.first_stage_model

    @property
    def _format(self) -> Any:
        return self.model.forge_objects.unet.model.model_config.latent_format

    @property
    def space(self) -> LatentSpace:
        return LatentSpace(float(self._format.scale_factor), float(getattr(self._format, "shift_factor", 0.0)))


class Host(ForgeFamily):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "reForge"
    vae_class = VAE
    management = model_management

    def vae(self, model: Any = None) -> HostVAE | None:
        if isinstance(model, VAE):  # an extension's own call
            return OwnedFirstStage(self.loaded_model(), model)
        model = shared.sd_model if model is None else model
        objects = getattr(model, "forge_objects", None)
        return None if objects is None else OwnedFirstStage(model, objects.vae)


def is_here() -> bool:
    return not picture_functions.missing()
