"""A VAE of video in ComfyUI and Forge Neo: its ``decode`` and ``encode``, in whose place ours stands.

Wan's decoder is called frame by frame with what it keeps of the frames before, so that only the methods around it see
whether there is one picture or a video. With them the 1x1 convolutions and the squares of Wan 2.2 are ours, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from vae_lib.engine import Operation, Padding
from vae_lib.guard import borrow, layers
from vae_lib.guard.seam import StandIn, attribute
from vae_lib.networks import Network


class WholeVAE:
    """Implements ``Seam``."""

    def __init__(self, module: Any, packages: Sequence[str]) -> None:
        """``packages``: where the program's own layers are defined, the first parts of the names of their modules."""
        self.module = module
        self._packages = packages

    def is_supported(self) -> bool:
        return borrow.is_supported_whole(self.module)

    @contextmanager
    def standing_in(self, stand_in: StandIn) -> Iterator[None]:
        with ExitStack() as stack:
            for operation in Operation:
                own = getattr(self.module, operation.value)
                stack.enter_context(attribute(self.module, operation.value, stand_in(operation, own)))
            yield

    def replaced_by(self, operation: Operation) -> str:
        return ""

    def padding(self, operation: Operation) -> Padding:
        for name, layer in self.module.named_children():
            if name not in ("encoder", "decoder"):
                layers.check(name, layer, self._packages, lambda layer: False)
        return layers.padding_of(getattr(self.module, operation.half), operation.half, self._packages)

    def dtype(self, operation: Operation) -> torch.dtype:
        return borrow.compute_dtype(getattr(self.module, operation.half))

    def network(self, operation: Operation, video: bool = False) -> Network:
        return borrow.network_of(dict(self.module.named_parameters()), borrow.WHOLE_PARTS[operation], video)

    def latents(self, x: Tensor) -> Tensor:
        return x

    def given(self, operation: Operation, made: Tensor, x: Tensor) -> Tensor:
        """Of the moments the mean alone."""
        return made.chunk(2, dim=1)[0] if operation is Operation.ENCODE else made
