"""VAE files that the host cannot load by itself: other layouts, wrong files, two of one name."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from modules import sd_models, sd_vae, shared

from vae_lib.checkpoints import load_vae
from vae_lib.errors import CheckpointError, UnknownVAE
from vae_lib.guard.notices import Notices
from vae_lib.hosts.patching import Patches

Wrapper = Callable[..., Any]

_EXTENSIONS = (".ckpt", ".pt", ".safetensors", ".sft")
_SECONDS_TO_SET_BACK = 5.0  # at most, until a dropdown shows the VAE that stays in use


class VAEFiles:
    """Patches of the host's loading and listing of VAE files."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._wanted: list[Mapping[str, torch.Tensor]] = []  # what the file being loaded must fit
        self.refused = ""  # why the last one was; empty if it was not
        self._taken_away = ("", 0.0)  # what the page may show no longer, and until when to show it again

    def install(self, patches: Patches) -> None:
        patches.patch(sd_vae, "load_vae_dict", self._load_vae_dict)
        patches.patch(sd_vae, "load_vae", self._load_vae)
        patches.patch(sd_vae, "get_loaded_vae_hash", self._get_loaded_vae_hash)
        patches.patch(sd_vae, "refresh_vae_list", _refresh_vae_list)
        patches.patch(type(shared.opts), "set", self._set_option)
        sd_vae.refresh_vae_list()

    def _load_vae_dict(self, original: Wrapper) -> Wrapper:
        def load_vae_dict(filename: str, map_location: Any) -> Mapping[str, torch.Tensor]:
            state_dict = _read(original, filename, map_location, self._wanted)
            if self._wanted:
                _check_fit(os.path.basename(filename), state_dict, self._wanted[-1])
            return state_dict

        return load_vae_dict

    def _load_vae(self, original: Wrapper) -> Wrapper:
        def load_vae(model: Any, vae_file: Any = None, vae_source: str = "from unknown source") -> Any:
            self._wanted.append(model.first_stage_model.state_dict())
            self.refused = ""
            if sd_vae.base_vae is None and sd_vae.loaded_vae_file is None:
                # What is loaded is the checkpoint's own, and not stored yet. reForge and Forge Classic note the
                # checkpoint with each generation all the same; then it would not be stored, and could not come back.
                sd_vae.checkpoint_info = None
            try:
                return original(model, vae_file, vae_source)
            except (CheckpointError, AssertionError, OSError) as error:
                problem = str(error)
            finally:
                self._wanted.pop()
            in_use = sd_vae.loaded_vae_file
            model.base_vae, model.loaded_vae_file = sd_vae.base_vae, in_use
            if in_use is None:
                sd_vae.delete_base_vae()
                model.base_vae = None
            name = _name_of(in_use)
            stays = f"The VAE in use stays: {name}." if name else "The checkpoint's own VAE stays in use."
            self.refused = f"{problem.rstrip('.')}. {stays}"
            self._notices.tell(self.refused, warning=True)
            return None

        return load_vae

    def _set_option(self, original: Wrapper) -> Wrapper:
        """A file that was refused leaves the setting as it was.

        A dropdown among the quick settings is set back by the answer to its event, and this change is an event again,
        with whose beginning gradio takes away what the first has shown: so it is shown once more.
        """

        def set_option(options: Any, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
            before, self.refused = options.data.get(key), ""
            changed = original(options, key, value, *args, **kwargs)
            if key != "sd_vae":
                return changed
            if self.refused:
                setattr(options, key, before if before is not None else options.get_default(key))
                self._taken_away = (self.refused, time.monotonic() + _SECONDS_TO_SET_BACK)
                return False
            shown, until = self._taken_away
            self._taken_away = ("", 0.0)
            if value == before and time.monotonic() < until:
                self._notices.show_again(shown)
            return changed

        return set_option

    def _get_loaded_vae_hash(self, original: Wrapper) -> Wrapper:
        def get_loaded_vae_hash() -> Any:
            try:
                return original()
            except OSError as error:
                name = os.path.basename(sd_vae.loaded_vae_file or "")
                self._notices.tell_once(
                    f"gone: {sd_vae.loaded_vae_file}",
                    f"the file of the VAE in use, {name}, cannot be read any more ({error.strerror or error}); the VAE "
                    "stays in use as it was loaded, without its hash in the infotext.",
                )
                return None

        return get_loaded_vae_hash


def _read(
    original: Wrapper, filename: str, map_location: Any, wanted: Sequence[Mapping[str, torch.Tensor]]
) -> Mapping[str, torch.Tensor]:
    """The file in the ldm layout, read by us alone.

    The host's loader never sees a pickle that we refuse: with --disable-safe-unpickle it runs whatever a file asks for,
    and without it, it checks an archive with another reader than it loads it with.
    """
    try:
        return dict(load_vae(filename, kind="VAE", hash_file=False).model.state_dict())
    except UnknownVAE:
        # safetensors files cannot act: where the loaded checkpoint has such a VAE, it is the host's own affair
        if filename.lower().endswith(".safetensors") and wanted:
            with contextlib.suppress(Exception):
                found: Mapping[str, torch.Tensor] = original(filename, map_location)
                _check_fit(os.path.basename(filename), found, wanted[-1])
                return found
        raise


def _check_fit(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """A load that fails half-way would leave a mixture of two VAEs, so look beforehand."""
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    wrong = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    if not (missing or extra or wrong):
        return
    channels, has = "decoder.conv_in.weight", "the loaded checkpoint's VAE has"
    if channels in found and channels in wanted and found[channels].shape[1] != wanted[channels].shape[1]:
        raise CheckpointError(
            f"{name} has {found[channels].shape[1]} latent channels and {has} {wanted[channels].shape[1]}: "
            "it belongs to another family of models."
        )
    example = (missing or extra or wrong)[0]
    kind = "lacks" if missing else "has" if extra else "has another size of"
    raise CheckpointError(f"{name} is no VAE for the loaded checkpoint: it {kind} '{example}'.")


def _name_of(path: str | None) -> str | None:
    return next((name for name, known in sd_vae.vae_dict.items() if known == path), path and os.path.basename(path))


def _refresh_vae_list(original: Wrapper) -> Wrapper:
    def refresh_vae_list() -> None:
        original()
        known = set(map(os.path.realpath, sd_vae.vae_dict.values()))
        for path in _candidates():
            real = os.path.realpath(path)  # links to folders, which may lead in a circle, are followed
            if real not in known:
                sd_vae.vae_dict[_free_name(Path(path), sd_vae.vae_dict)] = path
                known.add(real)
        ordered = sorted(sd_vae.vae_dict.items(), key=lambda item: shared.natural_sort_key(item[0]))
        sd_vae.vae_dict.clear()
        sd_vae.vae_dict.update(ordered)

    return refresh_vae_list


def folders() -> list[Path]:
    """Where the host looks for VAEs, apart from those beside checkpoints."""
    one = getattr(shared.cmd_opts, "vae_dir", None)
    given = getattr(shared.cmd_opts, "vae_dirs", [one])  # Neo has a list
    return [Path(folder) for folder in (sd_vae.vae_path, *given) if folder is not None]


def _candidates() -> Iterator[str]:
    """The files that the host looks at; it keeps one of each name."""
    beside_checkpoints = [sd_models.model_path, shared.cmd_opts.ckpt_dir]
    for folder, prefix in (
        *((folder, ".vae") for folder in beside_checkpoints),
        *((str(folder), "") for folder in folders()),
    ):
        if folder is not None and os.path.isdir(folder):
            for extension in _EXTENSIONS:
                pattern = os.path.join(glob.escape(folder), "**", f"*{prefix}{extension}")
                yield from sorted(glob.iglob(pattern, recursive=True))


def _free_name(path: Path, taken: Mapping[str, str]) -> str:
    """Its name, with as many folders before it as it takes."""
    parts = path.absolute().parts
    for count in range(1, len(parts)):
        name = "/".join(parts[-count:])
        if name not in taken:
            return name
    return str(path)
