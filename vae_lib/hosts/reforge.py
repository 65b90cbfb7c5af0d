"""reForge: A1111's model around ldm_patched's (ComfyUI's) VAE object, with Forge's memory manager."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ldm_patched.modules import model_management
from ldm_patched.modules.sd import VAE
from modules import devices, shared
from torch import Tensor

from vae_lib.decode import Operation
from vae_lib.guard.host import HostVAE, Need, Points
from vae_lib.hosts import forge_memory, picture_functions
from vae_lib.hosts.first_stage import FirstStage
from vae_lib.hosts.webui_family import WebUIFamily


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
    def scale_factor(self) -> float:
        return float(self._format.scale_factor)

    @property
    def factors(self) -> tuple[float, float]:
        return self.scale_factor, float(getattr(self._format, "shift_factor", 0.0))

    def unscale(self, latents: Tensor) -> Tensor:
        unscaled: Tensor = self._format.process_out(latents)
        return unscaled


class Host(WebUIFamily):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "reForge"

    def vae(self, model: Any = None) -> HostVAE | None:
        if isinstance(model, VAE):  # an extension's own call
            return OwnedFirstStage(self.loaded_model(), model)
        model = shared.sd_model if model is None else model
        objects = getattr(model, "forge_objects", None)
        return None if objects is None else OwnedFirstStage(model, objects.vae)

    def loaded(self) -> HostVAE | None:
        model = self.loaded_model()
        return None if model is None else self.vae(model)

    def wrap(self, points: Points) -> None:
        """Built-in extensions call the VAE object themselves."""
        super().wrap(points)
        for name in ("decode", "encode"):
            self._patches.patch(VAE, name, lambda original: forge_memory.guarded(points, original))

    def reserving(self, vae: OwnedFirstStage, need: Need) -> AbstractContextManager[object]:
        return forge_memory.reserving(model_management, vae.owner, need)

    def make_room_for_own(self, vae: OwnedFirstStage, operation: Operation, shape: tuple[int, ...]) -> None:
        forge_memory.make_room_for_own(model_management, vae.owner, operation, shape)

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():  # the weights may have been loaded in it
            return super().decode(latents)

    def after_decoding(self) -> None:
        devices.torch_gc()


def is_here() -> bool:
    return not picture_functions.missing()
