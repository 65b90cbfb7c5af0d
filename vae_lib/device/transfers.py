"""Copies of rows between the device and host memory, while the device computes where it can do both.

Where it can (`Kind.streams`), what is computed and what is copied form three queues: the current stream, one stream
towards the device and one towards the host, as in double buffering. Each copy starts after everything computed before
it was asked for, and whoever uses its result waits for it, on the device. The CPU only waits where it is two bands
ahead: beyond that, pinned memory would be allocated again (slowly) because what was freed is still being copied.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from vae_lib.device import kinds

SWITCH = "VAE_GUARD_OVERLAP"


class Transfers:
    """Copies in the order in which they are asked for, among what is computed."""

    overlapping = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._leaving: list[tuple[Any, Tensor]] = []

    def bring(self, target: Tensor, source: Tensor) -> Any:
        """Start copying host rows into ``target``, which can be used after `wait` for what this gives."""
        return self._copy("in", target, source)

    def send(self, target: Tensor, source: Tensor) -> None:
        """Start copying rows of the device into host memory; they are held, and must not change, until `retire`."""
        self._leaving.append((self._copy("out", target, source), source))

    def retire(self) -> None:
        """Let what was sent go: whatever is computed or brought from now on comes after it has arrived."""
        for copied, _ in self._leaving:
            self.wait(copied)
        self._leaving.clear()

    def wait(self, copied: Any) -> None:
        """What is computed from now on comes after this copy."""

    def close(self) -> None:
        """Every copy comes before what is computed from now on, also after a failure among them."""
        self._leaving.clear()

    def _copy(self, lane: str, target: Tensor, source: Tensor) -> Any:
        target.copy_(source)


class StreamTransfers(Transfers):
    """Each direction in a stream of its own; host memory must be pinned.

    No tensor needs ``record_stream``: what a copy touches is kept until the current stream has waited for the copy.
    """

    overlapping = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._runtime = kinds.of(device).runtime
        self._lanes = {lane: self._runtime.Stream(device) for lane in ("in", "out")}
        self._retired: list[Any] = []

    def retire(self) -> None:
        for copied in self._retired:
            copied.synchronize()
        self._retired = [copied for copied, _ in self._leaving]
        super().retire()

    def wait(self, copied: Any) -> None:
        self._runtime.current_stream(self._device).wait_event(copied)

    def close(self) -> None:
        for stream in self._lanes.values():
            self._runtime.current_stream(self._device).wait_stream(stream)
        super().close()

    def _copy(self, lane: str, target: Tensor, source: Tensor) -> Any:
        stream = self._lanes[lane]
        stream.wait_stream(self._runtime.current_stream(self._device))
        with self._runtime.stream(stream):
            target.copy_(source, non_blocking=True)
        return stream.record_event()


def kind_for(device: torch.device) -> type[Transfers] | None:
    """How rows get to and from this device; None for one that works on host memory itself.

    The environment variable VAE_GUARD_OVERLAP=0 has them copied in line everywhere.
    """
    kind = kinds.of(device)
    if kind.in_main_memory:
        return None
    return StreamTransfers if kind.streams and os.environ.get(SWITCH) != "0" else Transfers
