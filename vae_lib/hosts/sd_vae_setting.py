"""The choice of a VAE by the setting "SD VAE"."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from modules import hashes, sd_vae, shared, shared_items

from vae_lib.errors import InputError
from vae_lib.guard import precision


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
    """Implements what of ``VAEChoice``, and of what ``webui.host.WebUI`` asks beside it, comes of that setting."""

    loaded_model: Callable[[], Any]
    own_vae: ClassVar[str] = "None"  # what the setting calls the checkpoint's own
    taesd_setting: ClassVar[str] = "Settings > VAE"

    def vae_path(self) -> str | None:
        """The file of the VAE that is in use; None for the checkpoint's own."""
        path: str | None = sd_vae.loaded_vae_file
        return path

    def why_refused(self) -> str:
        """Why the host did not load the last one, where that is known."""
        return ""

    def is_vae_dropdown(self, component: Any, elem_id: str) -> bool:
        return elem_id == "setting_sd_vae"

    def vae_setting(self) -> Mapping[str, Any]:
        return {"choices": shared_items.sd_vae_items(), "value": shared.opts.sd_vae}

    def vae_files(self) -> Mapping[str, Path]:
        return {name: Path(path) for name, path in sd_vae.vae_dict.items()}

    def refresh_vaes(self) -> None:
        sd_vae.refresh_vae_list()

    def vae_in_use(self) -> str | None:
        in_use = self.vae_path()
        return next((name for name, path in sd_vae.vae_dict.items() if path == in_use), None)

    @changing_settings()
    def select_vae(self, name: str) -> None:
        path = sd_vae.vae_dict.get(name)
        if path is None:
            raise InputError(f"{name} is not among the WebUI's VAEs; TAESD is chosen in {self.taesd_setting} instead.")
        shared.opts.set("sd_vae", name)  # loads it, by the host's own callback and under its lock
        if self.loaded_model() is not None and self.vae_path() != path:
            raise InputError(self.why_refused() or f"{name} was not loaded; the console says why.")
        shared.opts.save(shared.config_filename)

    vae_settings: ClassVar[Mapping[str, type]] = {"sd_vae": str}  # what ``vae_of_generation`` may hold

    def vae_of_generation(self) -> Mapping[str, Any]:
        """The setting that would choose the VAE that is in use."""
        loaded = self.vae_path()
        return {"sd_vae": self.own_vae if loaded is None else self.vae_in_use() or os.path.basename(loaded)}

    def check_vae_is_there(self, chosen: Mapping[str, Any], known_hash: str | None) -> None:
        """Whether a VAE that ``vae_of_generation`` gave can still be loaded.

        Args:
            known_hash: the beginning of its file's hash at that time, as in the infotext.

        Raises:
            InputError: when it cannot, or its file has changed.
        """
        name = chosen["sd_vae"]
        if name == self.own_vae:
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
