"""Where SD.Next keeps the VAE: ``vae`` of the loaded diffusers pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from modules import hashes
from torch import Tensor

from vae_lib.catalog import LatentSpace
from vae_lib.engine import Operation
from vae_lib.guard import precision
from vae_lib.guard.diffusers_vae import Methods, is_known
from vae_lib.guard.seam import Own, StandIn, attribute

_FILE, _OWN, _FAILURE = "_vae_guard_file", "_vae_guard_checkpoints_own", "_vae_guard_failure"


class NotingFailures(Methods):
    """Implements ``Seam``. SD.Next makes an empty list of whatever is raised in a decode, so it is noted for us."""

    @contextmanager
    def standing_in(self, stand_in: StandIn) -> Iterator[None]:
        def noting(operation: Operation, own: Own) -> Own:
            call = stand_in(operation, own)

            def noted(x: Tensor) -> Any:
                try:
                    return call(x)
                except Exception as error:
                    object.__setattr__(self.module, _FAILURE, error)
                    raise

            return noted

        with attribute(self.module, _FAILURE, None), super().standing_in(noting):
            yield


@dataclass(frozen=True)
class PipelineVAE:
    """Implements ``HostVAE``.

    Attributes:
        model: the pipeline; it may have no VAE, or one that we have no network for.
    """

    model: Any

    family: ClassVar[str | None] = None

    @property
    def module(self) -> Any:
        vae = getattr(self.model, "vae", None)
        return getattr(vae, "_orig_mod", vae)  # of torch.compile

    @property
    def seam(self) -> NotingFailures:
        return NotingFailures(self.module)

    @property
    def model_name(self) -> str:
        return str(getattr(self._checkpoint, "name", "?"))

    @property
    def latent_channels(self) -> int:
        return int(self._config.get("latent_channels") or self._config.get("z_dim") or 0)

    @property
    def space(self) -> LatentSpace:
        """As SD.Next's ``full_vae_decode`` has it; packed latents are unpacked before that."""
        scale, shift = (float(self._config.get(name) or usual) for name, usual in _FACTORS.items())
        mean, deviation = (self._config.get(f"latents_{name}") for name in ("mean", "std"))
        if mean and deviation:
            mean, deviation = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, deviation))
            return LatentSpace(scale / deviation, mean + shift)
        return LatentSpace(scale, shift)

    def identity(self) -> str:
        path = self.file or getattr(self._checkpoint, "filename", "")
        return precision.identity(str(path), hashes.sha256)

    @property
    def file(self) -> str | None:
        """Which the VAE was loaded from by itself; None where it is the checkpoint's own."""
        path: str | None = getattr(self.module, _FILE, None)
        return path

    def take_failure(self) -> Exception | None:
        """What was last raised in a decode or encode of it, while ours stands in."""
        failure: Exception | None = getattr(self.module, _FAILURE, None)
        object.__setattr__(self.module, _FAILURE, None)
        return failure

    @property
    def _config(self) -> Any:
        return self.module.config if is_known(self.module) else {}

    @property
    def _checkpoint(self) -> Any:
        return getattr(self.model, "sd_checkpoint_info", None)


_FACTORS = {"scaling_factor": 1.0, "shift_factor": 0.0}


def note_file(vae: Any, path: str) -> None:
    """SD.Next keeps its name alone, and that even when the checkpoint's own is back."""
    object.__setattr__(vae, _FILE, path)


@contextmanager
def keeping_own(model: Any) -> Iterator[None]:
    """While the pipeline takes another VAE. SD.Next forgets the checkpoint's own when img2img makes a new pipeline."""
    before = getattr(model, "vae", None)
    own = getattr(before, _OWN, None) if hasattr(before, _FILE) else before
    if own is not None and own is not before and not hasattr(model, "original_vae"):
        model.original_vae = own
    yield
    if getattr(model, "vae", None) is not before and hasattr(model.vae, _FILE):
        object.__setattr__(model.vae, _OWN, own)
