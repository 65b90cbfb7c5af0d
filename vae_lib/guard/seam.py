"""Where ours stands in for a host's own decode and encode, and what the host's network is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vae_lib.engine import Operation, Padding
from vae_lib.guard import borrow, layers
from vae_lib.networks import Network

Own = Callable[..., Any]
"""The host's own decode or encode, as far as it reaches below the seam; the first argument is the tensor."""
StandIn = Callable[[Operation, Own], Own]


class Seam(Protocol):
    """Of one VAE, as it is now."""

    @property
    def module(self) -> nn.Module: ...

    def is_supported(self) -> bool:
        """Whether ours can stand in here, and whether we have a network for it."""

    def standing_in(self, stand_in: StandIn) -> AbstractContextManager[None]:
        """While open, ``stand_in(operation, own)`` is called in the place of each ``own``."""

    def replaced_by(self, operation: Operation) -> str:
        """Who had cut this operation into tiles before ours stood in for it; empty: nobody.

        Raises:
            Altered: when someone has replaced it by something else.
        """

    def padding(self, operation: Operation) -> Padding:
        """How its convolutions pad.

        Raises:
            VAEGuardError: when its layers are not what we compute.
        """

    def dtype(self, operation: Operation) -> torch.dtype:
        """The one that the host computes in."""

    def network(self, operation: Operation, video: bool = False) -> Network:
        """What ``operation`` needs of it, made of its own weights; of a ``video``'s network, of a copy of them.

        Raises:
            VAEGuardError: when it is none that we have a network for.
        """

    def latents(self, x: Tensor) -> Tensor | None:
        """The VAE's latents (B, C, h, w), where that is what the decode is given as ``x``, one of ``frames.parts``."""

    def given(self, operation: Operation, made: Tensor, x: Tensor) -> Any:
        """What the host's own would have given for ``x``: ``made``, with the axis of time if ``x`` has it."""


class Halves:
    """Implements ``Seam``: the ``forward`` of the VAE's ``encoder`` and ``decoder``, named as in ldm."""

    def __init__(self, module: Any, packages: Sequence[str]) -> None:
        """``packages``: where the host's own layers are defined, the first parts of the names of their modules."""
        self.module = module
        self._packages = packages
        self._replaced: dict[Operation, Own] = {}  # by others, before us
        self._moments: Tensor | None = None  # the last encode's: ``quant_conv`` is in them already

    def is_supported(self) -> bool:
        return borrow.is_supported(self.module)

    @contextmanager
    def standing_in(self, stand_in: StandIn) -> Iterator[None]:
        with ExitStack() as stack:
            for operation in Operation:
                half = getattr(self.module, operation.half)
                if "forward" in vars(half):
                    self._replaced[operation] = half.forward
                stack.enter_context(attribute(half, "forward", stand_in(operation, half.forward)))
            if (quant_conv := borrow.quant_conv(self.module)) is not None:
                stack.enter_context(attribute(quant_conv, "forward", self._passing_moments(quant_conv.forward)))
            yield

    def _passing_moments(self, own: Own) -> Own:
        return lambda x: x if x is self._moments else own(x)

    def replaced_by(self, operation: Operation) -> str:
        replaced = self._replaced.get(operation)
        if replaced is None:
            return ""
        if not layers.is_tiling(replaced):
            raise layers.Altered(operation.half, f"was given another forward by {layers.origin(replaced)}")
        return layers.origin(replaced)

    def padding(self, operation: Operation) -> Padding:
        return layers.padding_of(getattr(self.module, operation.half), operation.half, self._packages)

    def dtype(self, operation: Operation) -> torch.dtype:
        return borrow.compute_dtype(getattr(self.module, operation.half))

    def network(self, operation: Operation, video: bool = False) -> Network:
        return borrow.borrow(self.module, operation)

    def latents(self, x: Tensor) -> None:
        """It is given what the 1x1 convolution makes of them."""

    def given(self, operation: Operation, made: Tensor, x: Tensor) -> Any:
        if operation is Operation.ENCODE:
            self._moments = made
        return made


@contextmanager
def attribute(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of this instance, and put back what was there."""
    missing = object()
    before = module.__dict__.get(name, missing)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        if before is missing:
            module.__dict__.pop(name, None)
        else:
            object.__setattr__(module, name, before)
