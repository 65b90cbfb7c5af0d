"""The choice of a VAE: the setting "SD VAE", and what is noted beside a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from modules import extra_networks, hashes, sd_vae, shared, shared_items
from modules.call_queue import queue_lock

from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.guard import NOTHING_LOADED, precision
from vae_lib.guard.notices import Notices
from vae_lib.hosts import vae_files
from vae_lib.hosts.patching import Patches


def vae_is_gone(name: str) -> str:
    return (
        f"The VAE of these latents, {name}, is not there any more. Put it back and press Refresh in VAE > Files, or "
        "tick 'With the VAE in use now' in VAE > Unfinished; then decode them again."
    )


@contextmanager
def changing_settings() -> Iterator[None]:
    """Where the host was started so that its settings stay, it ends in an AssertionError."""
    try:
        yield
    except AssertionError as error:
        raise InputError(
            f"The setting stays as it is, for the WebUI was started so that it cannot be changed ({error}). Start it "
            "without --freeze-settings and the like to choose a VAE here."
        ) from error


class SDVAESetting:
    """Implements ``VAEChoice``, and what ``webui.host.WebUI`` asks beside it."""

    _patches: Patches
    loaded_model: Callable[[], Any]

    @property
    def assigns_vaes(self) -> bool:
        return shared.cmd_opts.vae_path is None  # which overrides every choice

    def watch_vae_files(self, notices: Notices) -> None:
        self._files = vae_files.VAEFiles(notices)
        self._files.install(self._patches)

    def is_vae_dropdown(self, component: Any, elem_id: str) -> bool:
        return elem_id == "setting_sd_vae"

    def vae_setting(self) -> Mapping[str, Any]:
        return {"choices": shared_items.sd_vae_items(), "value": shared.opts.sd_vae}

    def vae_files(self) -> Mapping[str, Path]:
        return {name: Path(path) for name, path in sd_vae.vae_dict.items()}

    def vae_folders(self) -> Sequence[Path]:
        return vae_files.folders()

    def refresh_vaes(self) -> None:
        sd_vae.refresh_vae_list()

    def vae_in_use(self) -> str | None:
        return next((name for name, path in sd_vae.vae_dict.items() if path == sd_vae.loaded_vae_file), None)

    @changing_settings()
    def select_vae(self, name: str) -> None:
        path = sd_vae.vae_dict.get(name)
        if path is None:
            raise InputError(f"{name} is not among the WebUI's VAEs; TAESD is chosen in Settings > VAE instead.")
        shared.opts.set("sd_vae", name)  # loads it, by the host's own callback and under its lock
        if self.loaded_model() is not None and sd_vae.loaded_vae_file != path:
            refused = self._files.refused or f"{name} was not loaded; the console says why."
            raise InputError(refused)
        shared.opts.save(shared.config_filename)

    vae_settings: ClassVar[Mapping[str, type]] = {"sd_vae": str}  # what ``vae_of_generation`` may hold

    def vae_of_generation(self) -> Mapping[str, Any]:
        """The setting that would choose the VAE that is in use."""
        loaded = sd_vae.loaded_vae_file
        return {"sd_vae": "None" if loaded is None else self.vae_in_use() or os.path.basename(loaded)}

    def check_vae_is_there(self, chosen: Mapping[str, Any], known_hash: str | None) -> None:
        """Whether a VAE that ``vae_of_generation`` gave can still be loaded.

        Args:
            known_hash: the beginning of its file's hash at that time, as in the infotext.

        Raises:
            InputError: when it cannot, or its file has changed.
        """
        name = chosen["sd_vae"]
        if name == "None":
            return
        path = sd_vae.vae_dict.get(name)
        if path is None:
            raise InputError(vae_is_gone(name))
        now = precision.file_hash(path, hashes.sha256) if known_hash else None
        if now and not now.startswith(known_hash or ""):
            raise InputError(
                f"The VAE of these latents, {name}, is another file now. Put the one back that they were made for, or "
                "tick 'With the VAE in use now' in VAE > Unfinished; then decode them again."
            )

    @changing_settings()
    def select_automatically(self) -> None:
        shared.opts.set("sd_vae", "Automatic")
        shared.opts.save(shared.config_filename)

    def assign_vae(self, name: str | None) -> None:
        """In the file beside the checkpoint in which the host keeps such things; what it changes now is loaded now."""
        if name is not None and name not in sd_vae.vae_dict:
            raise InputError(f"{name} is not among the WebUI's VAEs.")
        model = self.loaded_model()
        if model is None:
            raise InputError(NOTHING_LOADED)
        checkpoint = Path(model.sd_checkpoint_info.filename)
        metadata = {**extra_networks.get_user_metadata(str(checkpoint)), "vae": name}
        if name is None:
            del metadata["vae"]
        text = json.dumps(metadata, indent=4)
        write_atomically(checkpoint.with_suffix(".json"), lambda aside: aside.write_text(text, encoding="utf-8"))
        with queue_lock:
            sd_vae.reload_vae_weights()

    def assigned_vae(self) -> str | None:
        model = self.loaded_model()
        if model is None:
            return None
        name = extra_networks.get_user_metadata(model.sd_checkpoint_info.filename).get("vae")
        return str(name) if name and name != "Automatic" else None

    def overrides_assignments(self) -> str | None:
        if not shared.opts.sd_vae_overrides_per_model_preferences or sd_vae.is_automatic():
            return None
        return str(shared.opts.sd_vae)
