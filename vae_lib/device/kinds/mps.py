"""Apple's GPUs. They have no float64."""

from __future__ import annotations

import torch

from vae_lib.device.kind import NOT_QUITE_4_GIB, NOT_TOLD, Kind


class Mps(Kind):
    """Its runtime has other calls than the rest, and none of them is given a device."""

    def count(self) -> int:
        return int(torch.backends.mps.is_available())

    def free(self, device: torch.device) -> int | None:
        try:
            used = int(self.runtime.driver_allocated_memory())
            return max(0, int(self.runtime.recommended_max_memory()) - used)
        except NOT_TOLD:
            return None

    def total(self, device: torch.device) -> int | None:
        try:
            return int(self.runtime.recommended_max_memory())
        except NOT_TOLD:
            return None

    def synchronize(self, device: torch.device) -> None:
        self.runtime.synchronize()


# A larger array ends the process (pytorch/pytorch#143859).
KIND = Mps("mps", largest_block=NOT_QUITE_4_GIB, float64=False)
