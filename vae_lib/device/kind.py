"""What one kind of device is like, as facts. Those that we know are listed in `vae_lib.device.kinds`, a file each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

# Where a device's runtime has no such call in this version, or is not there, or its driver cannot answer.
NOT_TOLD = (AttributeError, AssertionError, RuntimeError)

NOT_QUITE_4_GIB = (4 << 30) - (2 << 20)  # bytes, as PyTorch rounds up to 2 MiB


@dataclass(frozen=True)
class Kernels:
    """Which of PyTorch's kernels a device has: those usual for its kind, or those found by `kernels.of`.

    Attributes:
        norms: the kernels behind PyTorch's SyncBatchNorm: statistics per channel in one reading, their combination, and
            the normalising, of channels-last pictures in any dtype with float32 factors. CUDA has them, and ROCm.
        mixes: ``addcmul`` takes half precision with float32 factors, without a copy of all in float32.
        attention: PyTorch's attention is preferred to our own wherever `attention_is_fused`; on CPUs ours is.
        bias_apart: a convolution adds its bias in another pass over the result, as cuDNN does for channels last; the
            bias is then left to the norm that follows, by ``norms``.
        winograd: our own convolution by matrix products is faster than PyTorch's: on most CPUs in float32.
    """

    norms: bool = False
    mixes: bool = True
    attention: bool = False
    bias_apart: bool = False
    winograd: bool = False


class Allocator(NamedTuple):
    """What PyTorch's allocator takes on a device beside the arrays, in bytes.

    Attributes:
        rest: small arrays and what the kernels take, once.
        unsplit: it does not split less than this off a large block, so that a larger array may hold so much more.
        left_over: it takes the driver's memory in segments, of which up to this is left over where arrays are large.
    """

    rest: int = 0
    unsplit: int = 0
    left_over: int = 0


class Speeds(NamedTuple):
    """How fast an ordinary device of a kind works, for lack of a measurement.

    Attributes:
        multiplications: a second, in the engine's convolutions.
        moved: bytes of activations read and written a second.
        transferred: bytes a second between host and device.
        dispatch_seconds: what it takes to ask PyTorch for one operation, however small.
        plain_multiplications: a second, in PyTorch's own convolutions.
    """

    multiplications: float
    moved: float
    transferred: float
    dispatch_seconds: float
    plain_multiplications: float


@dataclass(frozen=True)
class Kind:
    """One kind of device; without further facts, one of which nothing is known: a cautious idea of a GPU.

    Attributes:
        name: the type of its ``torch.device``.
        in_main_memory: it works on the program's own memory: nothing is copied to it or from it, what is offloaded goes
            to scratch files, and it is there when no other device is.
        asynchronous: work goes on there after the call that asked for it, so that it has to be waited for, and asking
            and working take their time at once.
        keeps_freed_memory: PyTorch's allocator keeps what was freed there for itself, so that it may be in pieces.
        allocator: what that takes beside the arrays, where it keeps the peak of it all, too. None where this is not
            known: then arrays alone are counted.
        largest_block: bytes that one array may have at most; None where only the memory itself limits it.
        streams: copies to and from host memory, which is pinned for it, run beside what is computed.
        float64: it has that type.
        usual_dtype: what VAEs compute in there if nobody says otherwise.
        kernels: those that are usual there in half precision (``winograd``: in float32); `kernels.of` looks at them.
        fuses_attention: PyTorch's attention usually keeps no matrix of scores there.
        tensor_cores: half precision (and TF32) is computed on them, many times as fast as float32 and on pictures that
            are channels last; plain float32 is computed elsewhere, on pictures that are channels first.
        stretch_elements: of a band that a norm looks at in one go.
        clock: seconds, with which work there is timed.
    """

    name: str
    in_main_memory: bool = False
    asynchronous: bool = True
    keeps_freed_memory: bool = True
    allocator: Allocator | None = None
    largest_block: int | None = None
    streams: bool = False
    float64: bool = True
    usual_dtype: torch.dtype = torch.float16
    kernels: Kernels = Kernels(attention=True)
    fuses_attention: bool = False
    tensor_cores: bool = False
    stretch_elements: int = 1 << 24  # enough to fill a GPU
    clock: Callable[[], float] = time.perf_counter

    @property
    def runtime(self) -> Any:
        """PyTorch's module for it, such as ``torch.cuda``; None where this version has none."""
        return getattr(torch, self.name, None)

    def count(self) -> int:
        """Devices of this kind that can be used in this process."""
        try:
            return int(self.runtime.device_count()) if self.runtime.is_available() else 0
        except NOT_TOLD:
            return 0

    def free(self, device: torch.device) -> int | None:
        """Bytes that can be allocated now: free for the driver, and what the allocator holds but can give back.

        None where the runtime does not tell.
        """
        try:
            free, _ = self.runtime.mem_get_info(device)
        except NOT_TOLD:
            return None
        return int(free) + self._returnable(device)

    def total(self, device: torch.device) -> int | None:
        """Bytes that the device has, free or not; None where the runtime does not tell."""
        try:
            return int(self.runtime.mem_get_info(device)[1])
        except NOT_TOLD:
            return None

    def statistics(self, device: torch.device) -> dict[str, int]:
        """The allocator's, in bytes by PyTorch's names; empty where there are none, as with ZLUDA."""
        try:
            return self.runtime.memory_stats(device)
        except NOT_TOLD:
            return {}

    def release_cached(self) -> None:
        """Give the driver back what is unused; never raises, whatever state the device is in."""
        if self.keeps_freed_memory:
            with contextlib.suppress(*NOT_TOLD):
                self.runtime.empty_cache()

    def synchronize(self, device: torch.device) -> None:
        """Wait until everything that the device was given to do is done, where PyTorch can wait for it."""
        wait = getattr(self.runtime, "synchronize", None)
        if self.asynchronous and wait is not None:
            wait(device)

    def card(self, device: torch.device) -> str:
        """The device as its driver calls it; the kind's name where nobody asks."""
        return self.name

    def driver(self) -> str:
        """What drives it, with its version, as part of what a measurement holds for; empty where nobody asks."""
        return ""

    def speeds(self, dtype: torch.dtype) -> Speeds:
        fast = 1 if dtype == torch.float32 else 4
        return Speeds(4e12 * fast, 250e9, 10e9, 2e-5, 4e12 * fast)

    def _returnable(self, device: torch.device) -> int:
        """Bytes that the allocator has reserved and can give back.

        Not those between arrays that are in use ("inactive split"), unless its segments can shrink: a plan's large
        arrays do not fit there.
        """
        stats = self.statistics(device)
        reserved, active, between = (
            int(stats.get(f"{name}_bytes.all.current", 0)) for name in ("reserved", "active", "inactive_split")
        )
        return max(0, reserved - active - (0 if _segments_shrink() else between))


def _segments_shrink() -> bool:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
    return any("expandable_segments:true" in os.environ.get(name, "").lower() for name in names)
