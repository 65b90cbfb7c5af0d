"""A host of a few lines: a VAE of random weights, and notes of all it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.networks.small import own_network
from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints.unfinished import Afterwards, Latents
from vae_lib.engine import Operation
from vae_lib.guard import Folders, Points
from vae_lib.guard.seam import Halves

SCALE = 0.18215  # SD1's


@dataclass
class FakeVAE:
    module: Any
    model_name: str = "small"
    family: str | None = "SD1"
    latent_channels: int = 4
    space: LatentSpace = field(default_factory=lambda: LatentSpace(SCALE))

    @property
    def seam(self) -> Halves:
        return Halves(self.module, ("vae_lib",))

    def identity(self) -> str:
        return "these weights"


@dataclass
class FakeHost:
    data: Path
    values: dict[str, object] = field(default_factory=dict)
    loaded: FakeVAE | None = field(default_factory=lambda: FakeVAE(network()))
    told: list[str] = field(default_factory=list)
    noted: dict[str, str] = field(default_factory=dict)
    saved: list[tuple[Image.Image, str]] = field(default_factory=list)
    repair: tuple[torch.dtype, ...] = (torch.float32,)
    checkpoints: tuple[str, ...] = ("small",)
    not_repeated: tuple[str, ...] = ()
    name: str = "a fake"
    goes_on_black: bool = False
    points: Points | None = None

    def vae(self, model: Any = None) -> FakeVAE | None:
        return self.loaded

    def wrap(self, points: Points) -> None:
        self.points = points

    def unwrap(self) -> None:
        self.points = None

    def reserving(self, vae: Any, need: Any) -> Any:
        return nullcontext()

    def make_room_for_own(self, vae: Any, operation: Operation, shape: tuple[int, ...]) -> None: ...

    def settings(self) -> Mapping[str, object]:
        return self.values

    def folders(self) -> Folders:
        return Folders(self.data, self.data / "VAE", self.data / "VAE-taesd")

    def device(self) -> torch.device:
        return torch.device("cpu")

    def dtype(self) -> torch.dtype:
        return torch.float32

    def repair_dtypes(self) -> tuple[torch.dtype, ...]:
        return self.repair

    def checks_numbers(self) -> bool:
        return True

    def numeric_error(self, message: str) -> Exception | None:
        return None if self.goes_on_black else ArithmeticError(message)

    def lock(self) -> Any:
        return threading.Lock()

    def progress_text(self) -> str | None:
        return None

    def show_progress_text(self, text: str | None) -> None: ...

    def notify(self, message: str, *, warning: bool) -> None:
        self.told.append(message)

    def comment(self, p: Any, message: str) -> None: ...

    def note(self, p: Any, entries: Mapping[str, str]) -> None:
        self.noted.update(entries)

    def infotexts(self, p: Any, count: int) -> list[str]:
        return [f"a cup\nSteps: 2, Seed: {p.seed + index}, Size: 32x32" for index in range(count)]

    def is_first_pass(self, p: Any) -> bool:
        return False

    def job(self, name: str) -> Any:
        return nullcontext()

    def afterwards(self, p: Any) -> Afterwards:
        return Afterwards({"seed": p.seed}, not_repeated=self.not_repeated)

    def has_checkpoint(self, name: str) -> bool:
        return name in self.checkpoints

    def finish(self, latents: Latents, again: Any, saved: bool | None) -> list[tuple[Image.Image, str]]:
        pictures = self.generate(latents.tensor, again=again)
        pixels = ((pictures + 1) / 2).clamp(0, 1).mul(255).permute(0, 2, 3, 1).numpy().astype(np.uint8)  # (B, H, W, 3)
        made = [(Image.fromarray(one), again.infotext(index, {})) for index, one in enumerate(pixels)]
        self.saved += made if saved else []
        return made

    def grid(self, pictures: Any, batch_size: int, infotext: str, tab: str) -> Image.Image:
        return side_by_side(pictures)

    def shown_infotext(self, text: str) -> str:
        return text

    def has_served(self, path: str) -> bool:
        return self.data in Path(path).parents

    def is_interrupted(self) -> bool:
        return False

    def preview(self, latents: Tensor) -> Image.Image | None:
        return Image.new("RGB", (8, 8))

    def generate(
        self,
        latents: Tensor,
        request: Any = None,
        decode: Callable[..., Tensor] | None = None,
        again: Any = None,
        batches: int = 1,
    ) -> Tensor:
        """What the family's wrapped functions come to for a txt2img."""
        points, module = self.points, None if self.loaded is None else self.loaded.module
        p = SimpleNamespace(vae_guard=request, seed=7, vae_guard_again=again)

        def own() -> Tensor:
            with guarded.guarding(scaled=latents):
                return (decode or decoded)(module, latents)

        assert points is not None
        guarded = points
        with points.generation(p):
            return [points.batch(None, latents, own) for _ in range(batches)][-1]


def side_by_side(pictures: Any) -> Image.Image:
    made = Image.new("RGB", (sum(one.width for one in pictures), pictures[0].height))
    left = 0
    for one in pictures:
        made.paste(one, (left, 0))
        left += one.width
    return made


def network() -> Any:
    """As the host has it: the halves are modules whose ``forward`` can be replaced."""
    return own_network()


def decoded(module: Any, latents: Tensor) -> Tensor:
    """The host's own decode of scaled latents."""
    return module.decoder(module.post_quant_conv(latents / SCALE))  # type: ignore[no-any-return]
