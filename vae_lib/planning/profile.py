"""What is known of a device in one floating-point type: how fast it works, and which routes go wrong there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vae_lib.device import transfers
from vae_lib.planning.route import Route
from vae_lib.planning.work import Cost, Work


@dataclass(frozen=True)
class Speeds:
    """How fast a device works.

    Attributes:
        multiplications: a second, in the engine's convolutions.
        moved: bytes of activations read and written a second.
        transferred: bytes a second between host and device.
        dispatch_seconds: what it takes to ask PyTorch for one operation, however small.
        plain_multiplications: a second, in PyTorch's own convolutions of TAESD's width.
    """

    multiplications: float
    moved: float
    transferred: float
    dispatch_seconds: float
    plain_multiplications: float

    @classmethod
    def usual(cls, device: torch.device, dtype: torch.dtype) -> Speeds:
        """Of an ordinary machine of that kind, for lack of a measurement."""
        if device.type == "cpu":
            threads = torch.get_num_threads()
            slow = 1 if dtype == torch.float32 else 8  # half precision is emulated on most CPUs
            return cls(32e9 * threads / slow, 15e9 / slow, 2e9, 5e-6, 32e9 * threads / slow)
        fast = 1 if dtype == torch.float32 else 4
        return cls(4e12 * fast, 250e9, 10e9, 2e-5, 4e12 * fast)

    def seconds(self, cost: Cost, apart: bool = False, overlapping: bool = False) -> float:
        """Of the work on a device.

        Args:
            apart: the device works on while it is told what to do next (a GPU), so that the slower of the two counts.
            overlapping: copies between host and device run while the device computes.
        """
        computing = cost.multiplications / self.multiplications + cost.moved_bytes / self.moved
        telling = cost.dispatches * self.dispatch_seconds
        beside = cost.transferred_bytes - cost.exposed_bytes if overlapping else 0
        copying = (cost.transferred_bytes - beside) / self.transferred
        computing = max(computing, telling) if apart else computing + telling
        return max(computing, beside / self.transferred) + copying


@dataclass(frozen=True)
class Profile:
    """A device in one dtype, for one operation.

    Attributes:
        plain: how many times longer the plain network takes than the speeds say; 0: it was not timed.
        distrusted: routes that gave another picture than the plain network when the device was checked.
    """

    device: torch.device
    dtype: torch.dtype
    speeds: Speeds
    plain: float = 0.0
    distrusted: frozenset[Route] = frozenset()

    @classmethod
    def usual(cls, work: Work) -> Profile:
        """For lack of a measurement: of an ordinary device of that kind, which does all routes right."""
        return cls(work.device, work.dtype, Speeds.usual(work.device, work.dtype))

    def seconds(self, cost: Cost) -> float:
        """Of our own work on the device."""
        kind = transfers.kind_for(self.device)
        return self.speeds.seconds(cost, self.device.type != "cpu", kind is not None and kind.overlapping)

    def plain_seconds(self, cost: Cost) -> float:
        """Of the plain network's."""
        return self.plain * self.seconds(cost)


Profiles = Callable[[Work], Profile]
"""The profile of the device and dtype of some work, for its operation."""
