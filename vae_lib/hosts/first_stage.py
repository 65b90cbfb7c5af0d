"""Where A1111 keeps the VAE: ``first_stage_model`` of the loaded checkpoint's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from vae_lib.catalog import LatentSpace
from vae_lib.guard.seam import Halves
from vae_lib.hosts.a1111_family import weights_identity
from vae_lib.hosts.webui_family import checkpoint_name

_FAMILY_FLAGS = {"is_sdxl": "SDXL", "is_sd3": "SD3", "is_sd2": "SD2", "is_sd1": "SD1"}


@dataclass(frozen=True)
class FirstStage:
    """Implements ``HostVAE``: ``model.first_stage_model`` of the LatentDiffusion of ldm and sgm, and of SD3's model."""

    model: Any

    packages: ClassVar[Sequence[str]] = ("ldm", "sgm", "modules")  # where the host's own layers are defined

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.model.first_stage_model
        return module

    @property
    def seam(self) -> Halves:
        return Halves(self.module, self.packages)

    @property
    def model_name(self) -> str:
        return checkpoint_name(self.model)

    @property
    def family(self) -> str | None:
        return next((name for flag, name in _FAMILY_FLAGS.items() if getattr(self.model, flag, False)), None)

    @property
    def latent_channels(self) -> int:
        module: Any = self.module
        into = getattr(module, "post_quant_conv", None) or module.decoder.conv_in
        return int(into.weight.shape[1])

    @property
    def space(self) -> LatentSpace:
        form = getattr(self.model, "latent_format", self.model)  # SD3 has one
        return LatentSpace(float(form.scale_factor), float(getattr(form, "shift_factor", 0.0)))

    def identity(self) -> str:
        return weights_identity(self.model)
