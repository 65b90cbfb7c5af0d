"""lllyasviel's Stable Diffusion WebUI Forge."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from backend import memory_management
from backend.patcher.vae import VAE
from modules import hashes, sd_models, shared
from modules_forge import main_entry
from torch import nn

from vae_lib.catalog import LatentSpace
from vae_lib.errors import InputError
from vae_lib.guard import Notices, precision
from vae_lib.guard.host import HostVAE
from vae_lib.guard.seam import Halves, Seam
from vae_lib.hosts import picture_functions, unknown, vae_files
from vae_lib.hosts.forge_family import ForgeFamily
from vae_lib.hosts.sd_vae_setting import changing_settings, vae_is_gone
from vae_lib.hosts.webui_family import checkpoint_name


@dataclass(frozen=True)
class ForgeVAE:
    """Implements ``HostVAE``: ``forge_objects.vae``, whose network knows its scaling itself.

    Attributes:
        owner: the VAE object.
        model: the engine that it belongs to, as far as that is known.
    """

    owner: Any
    model: Any

    family: ClassVar[str | None] = None

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.owner.first_stage_model
        return module

    @property
    def seam(self) -> Seam:
        return Halves(self.module, ("backend",))

    @property
    def model_name(self) -> str:
        return checkpoint_name(self.model)

    @property
    def latent_channels(self) -> int:
        return int(self.owner.latent_channels)

    @property
    def space(self) -> LatentSpace:
        module: Any = self.module
        return LatentSpace(float(module.scaling_factor), float(module.shift_factor))

    def identity(self) -> str:
        path = _chosen() or getattr(self.model, "filename", "")
        return precision.identity(str(path), hashes.sha256)


class Host(ForgeFamily):
    """Implements ``guard.host.Host`` and ``webui.host.WebUI``."""

    name = "Forge"
    vae_class = VAE
    management = memory_management
    host_vae: ClassVar[type[ForgeVAE]] = ForgeVAE

    def vae(self, model: Any = None) -> HostVAE | None:
        if isinstance(model, VAE):  # an extension's own call
            return self.host_vae(model, self.loaded_model())
        model = self.loaded_model() or _load() if model is None else model
        objects = getattr(model, "forge_objects", None)
        return None if objects is None else self.host_vae(objects.vae, model)

    def loaded_model(self) -> Any:
        """Before the first generation there is only a stand-in."""
        model = super().loaded_model()
        return model if getattr(model, "forge_objects", None) is not None else None

    # "VAE / Text Encoder" takes several files, of which one is the VAE

    def watch_vae_files(self, notices: Notices) -> None:
        """Forge's loader recognises what it loads by the tensors; there is nothing to teach."""

    def vae_files(self) -> Mapping[str, Path]:
        found = {name: os.path.abspath(path) for name, path in main_entry.module_list.items()}
        return {name: Path(path) for name, path in sorted(found.items()) if is_in_a_vae_folder(path)}

    def refresh_vaes(self) -> None:
        main_entry.refresh_models()

    def vae_in_use(self) -> str | None:
        chosen = _chosen()
        return next((name for name, path in self.vae_files().items() if str(path) == chosen), None)

    @changing_settings()
    def select_vae(self, name: str) -> None:
        files = self.vae_files()
        if name not in files:
            raise InputError(f"{name} is not among the files of 'VAE / Text Encoder'.")
        others = [path for path in shared.opts.forge_additional_modules if Path(path) not in files.values()]
        self.choose_modules([*others, str(files[name])])

    def choose_modules(self, paths: Sequence[str]) -> None:
        """The next generation loads them."""
        main_entry.modules_change(list(paths))

    vae_settings: ClassVar[Mapping[str, type]] = {"forge_additional_modules": list}

    def vae_of_generation(self) -> Mapping[str, Any]:
        return {"forge_additional_modules": list(shared.opts.forge_additional_modules or ())}

    def check_vae_is_there(self, chosen: Mapping[str, Any], known_hash: str | None) -> None:
        """Of its text encoders as well: Forge would leave out what it does not find, and load what it does not list."""
        listed = {*map(str, main_entry.module_list.values()), *(shared.opts.forge_additional_modules or ())}
        for path in chosen.get("forge_additional_modules", ()):
            if path not in listed or not os.path.isfile(path):
                raise InputError(vae_is_gone(os.path.basename(path)))

    def is_vae_dropdown(self, component: Any, elem_id: str) -> bool:
        """By its label: it has no elem_id."""
        return getattr(component, "label", None) == "VAE / Text Encoder"

    def vae_setting(self) -> Mapping[str, Any]:
        chosen = shared.opts.forge_additional_modules or ()
        return {
            "choices": list(main_entry.module_list),
            "value": [os.path.basename(path) for path in chosen],
        }

    assigns_vaes = False

    def select_automatically(self) -> None:
        raise InputError(f"{self.name} has no automatic choice of a VAE; empty 'VAE / Text Encoder' instead.")

    def assigned_vae(self) -> str | None:
        return None

    def overrides_assignments(self) -> str | None:
        return None

    def assign_vae(self, name: str | None) -> None:
        raise InputError(f"{self.name} has no VAE of its own for each checkpoint; choose one in 'VAE / Text Encoder'.")


def _load() -> Any:
    """The selected checkpoint, which Forge loads with the first generation; None where there is none."""
    if not sd_models.model_data.forge_loading_parameters.get("checkpoint_info"):
        return None
    model, _ = sd_models.forge_model_reload()
    return model


def _chosen() -> str | None:
    """The path of the chosen VAE, among the text encoders that may be chosen beside it."""
    chosen = map(os.path.abspath, shared.opts.forge_additional_modules or ())
    return next((path for path in chosen if is_in_a_vae_folder(path)), None)


def is_in_a_vae_folder(path: str) -> bool:
    return any(Path(os.path.abspath(folder)) in Path(path).parents for folder in vae_files.folders())


def is_here() -> bool:
    """Forge Neo has all the modules and functions, and other attributes."""
    return not picture_functions.missing() and not unknown.recognised()
