"""A stand-in for ComfyUI: as much of its modules and of its VAE object as two nodes touch.

What ComfyUI does around a decode is imitated here only as far as the nodes lean on it; ``test_comfyui`` runs the real
one where COMFYUI_DIR names a checkout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class Interrupted(Exception):
    """What ComfyUI raises where the user has stopped it."""


@dataclass
class Manager:
    """Notes what the memory manager was asked for."""

    asked: list[float] = field(default_factory=list)
    stopped: bool = False
    shown: list[tuple[int, int]] = field(default_factory=list)

    def load_models_gpu(self, models: list[Any], memory_required: float = 0) -> None:
        self.asked.append(memory_required)

    def processing_interrupted(self) -> bool:
        return self.stopped

    def throw_exception_if_processing_interrupted(self) -> None:
        if self.stopped:
            raise Interrupted


class VAE:
    """``comfy.sd.VAE``: it asks for memory, cuts a batch by it, and decodes in tiles (here: not at all) without it."""

    def __init__(self, manager: Manager, module: nn.Module, latent_channels: int, latent_dim: int = 2) -> None:
        self.first_stage_model, self.latent_channels, self.latent_dim = module, latent_channels, latent_dim
        self.device, self.vae_dtype, self.patcher = torch.device("cpu"), torch.float32, object()
        self.memory_used_decode: Callable[..., float] = lambda shape, dtype: 10.0**12
        self.memory_used_encode: Callable[..., float] = lambda shape, dtype: 10.0**12
        self._manager = manager

    def decode(self, samples: Tensor) -> Tensor:
        self._manager.load_models_gpu([self.patcher], self.memory_used_decode(samples.shape, self.vae_dtype))
        module: Any = self.first_stage_model
        picture: Tensor = module.decode(samples)
        return ((picture + 1) / 2).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        x = pixels.movedim(-1, 1) * 2 - 1
        if self.latent_dim == 3:
            x = x.movedim(1, 0).unsqueeze(0)
        self._manager.load_models_gpu([self.patcher], self.memory_used_encode(x.shape, self.vae_dtype))
        module: Any = self.first_stage_model
        latents: Tensor = module.encode(x)
        return latents


class _Decode:
    FUNCTION = "decode"

    def decode(self, vae: VAE, samples: dict[str, Tensor]) -> tuple[Tensor]:
        return (vae.decode(samples["samples"]),)


class _Encode:
    FUNCTION = "encode"

    def encode(self, vae: VAE, pixels: Tensor) -> tuple[dict[str, Tensor]]:
        return ({"samples": vae.encode(pixels[..., :3])},)


def modules(manager: Manager) -> dict[str, Any]:
    """ComfyUI's modules that the nodes import, by name."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            manager.shown.append((value, self.total))

    comfy, utils, nodes = ModuleType("comfy"), ModuleType("comfy.utils"), ModuleType("nodes")
    comfy.model_management = manager  # type: ignore[attr-defined]
    utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    nodes.NODE_CLASS_MAPPINGS = {"VAEDecode": _Decode, "VAEEncode": _Encode}  # type: ignore[attr-defined]
    return {"comfy": comfy, "comfy.model_management": manager, "comfy.utils": utils, "nodes": nodes}


def forget() -> None:
    """Our module of the nodes, which holds ComfyUI's."""
    sys.modules.pop("vae_lib.comfyui", None)
