"""What is known of a device in one floating-point type: how fast it works, and which routes go wrong there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vae_lib.device import kinds, transfers
from vae_lib.device.kind import Speeds
from vae_lib.planning.route import Route
from vae_lib.planning.work import Cost, Work


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
        return cls(work.device, work.dtype, kinds.of(work.device).speeds(work.dtype))

    def seconds(self, cost: Cost) -> float:
        """Of our own work on the device."""
        kind = transfers.kind_for(self.device)
        apart = kinds.of(self.device).asynchronous
        return seconds(self.speeds, cost, apart, kind is not None and kind.overlapping)

    def plain_seconds(self, cost: Cost) -> float:
        """Of the plain network's."""
        return self.plain * self.seconds(cost)


def seconds(speeds: Speeds, cost: Cost, apart: bool = False, overlapping: bool = False) -> float:
    """Of some work on a device.

    Args:
        apart: the device works on while it is given more to do (a GPU), so that the slower of the two counts.
        overlapping: copies between host and device run while the device computes.
    """
    computing = cost.multiplications / speeds.multiplications + cost.moved_bytes / speeds.moved
    telling = cost.dispatches * speeds.dispatch_seconds
    beside = cost.transferred_bytes - cost.exposed_bytes if overlapping else 0
    copying = (cost.transferred_bytes - beside) / speeds.transferred
    computing = max(computing, telling) if apart else computing + telling
    return max(computing, beside / speeds.transferred) + copying


Profiles = Callable[[Work], Profile]
"""The profile of the device and dtype of some work, for its operation."""
