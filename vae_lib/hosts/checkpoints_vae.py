"""A VAE for each checkpoint, noted beside it, and files of VAEs that the host cannot load by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from modules import extra_networks, sd_vae, shared
from modules.call_queue import queue_lock

from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.guard import NOTHING_LOADED
from vae_lib.guard.notices import Notices
from vae_lib.hosts import vae_files
from vae_lib.hosts.patching import Patches
from vae_lib.hosts.sd_vae_setting import SDVAESetting


class CheckpointsVAE(SDVAESetting):
    """Implements the rest of ``VAEChoice``, and of what ``webui.host.WebUI`` asks beside it."""

    _patches: Patches

    @property
    def assigns_vaes(self) -> bool:
        return shared.cmd_opts.vae_path is None  # which overrides every choice

    def watch_vae_files(self, notices: Notices) -> None:
        self._files = vae_files.VAEFiles(notices)
        self._files.install(self._patches)

    def why_refused(self) -> str:
        return self._files.refused

    def vae_folders(self) -> Sequence[Path]:
        return vae_files.folders()

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
        text, beside = json.dumps(metadata, indent=4), checkpoint.with_suffix(".json")
        if metadata:
            write_atomically(beside, lambda aside: aside.write_text(text, encoding="utf-8"))
        else:  # nothing is noted any more
            beside.unlink(missing_ok=True)
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
