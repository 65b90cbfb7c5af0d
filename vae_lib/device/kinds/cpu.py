"""The CPU: it works on the program's own memory, while the program waits."""

from __future__ import annotations

import sys
import time

import torch

from vae_lib.device.kind import Kernels, Kind, Speeds


class Cpu(Kind):
    def count(self) -> int:
        return 1

    def free(self, device: torch.device) -> int | None:
        return _ram("MemAvailable:", "available")

    def total(self, device: torch.device) -> int | None:
        return _ram("MemTotal:", "total")

    def speeds(self, dtype: torch.dtype) -> Speeds:
        threads = torch.get_num_threads()
        slow = 1 if dtype == torch.float32 else 8  # half precision is emulated on most CPUs
        return Speeds(32e9 * threads / slow, 15e9 / slow, 2e9, 5e-6, 32e9 * threads / slow)


def _ram(line_of_linux: str, name_of_psutil: str) -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith(line_of_linux):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import psutil
    except ImportError:
        return None
    return int(getattr(psutil.virtual_memory(), name_of_psutil))


KIND = Cpu(
    "cpu",
    in_main_memory=True,
    asynchronous=False,
    keeps_freed_memory=False,
    usual_dtype=torch.float32,
    kernels=Kernels(mixes=False, winograd=True),
    stretch_elements=1 << 19,  # about what stays in the cache of a core
    # this thread's own time, not that in which it had to give way (Windows counts it too coarsely)
    clock=time.perf_counter if sys.platform == "win32" else time.thread_time,
)
