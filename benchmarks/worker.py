"""A process that decodes by one system, so that no system runs in what another left behind."""

from __future__ import annotations

import multiprocessing
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from benchmarks.cap import Cap
from benchmarks.peers import Missing
from benchmarks.systems import SYSTEMS, Builder, Place, plain
from benchmarks.workload import Job, difference, timed
from vae_lib.device import DTYPES, PeakMemory, free_bytes
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.memory import release_cached
from vae_lib.errors import PlanError

REFERENCE = "the plain network in fp32"


class Worker:
    """The other end of such a process; each call waits for its answer, a dict with "problem" if it failed."""

    def __init__(self, system: str, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, system, device, threads), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()

    def ask(self, question: str, *arguments: Any) -> dict[str, Any]:
        try:
            self._connection.send((question, arguments))
            answer: dict[str, Any] = self._connection.recv()
        except (EOFError, OSError):
            return {"problem": "the process died"}
        return answer


def _serve(connection: Connection, system: str, device_name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    build: Builder = plain if system == REFERENCE else SYSTEMS[system]
    server = _Server(build, torch.device(device_name))
    while True:
        try:
            question, arguments = connection.recv()
        except EOFError:
            return
        try:
            with torch.inference_mode(), server.limits or nullcontext():
                answer = getattr(server, question)(*arguments)
        except Missing as error:
            answer = {"problem": str(error), "missing": True}
        except Exception as error:
            if not (is_out_of_memory(error) or isinstance(error, PlanError)):
                raise
            answer = {"problem": "out of memory"}
            del error
        release_cached(server.device)  # the others share the device
        connection.send(answer)


class _Server:
    def __init__(self, build: Builder, device: torch.device) -> None:
        self._build, self.device = build, device
        self.limits: Cap | None = None

    def cap(self, limit: int, ballast: int) -> dict[str, Any]:
        """Allow ``limit`` bytes on the device, ``ballast`` of them taken; before the first ``load``."""
        self.limits = Cap(self.device, limit, ballast)
        return {}

    def load(self, job: Job, dtype: str = "") -> dict[str, Any]:
        """Make ready for a job, in its dtype or another."""
        vae = job.vae()
        self._latents = job.latents(vae).to(self.device, DTYPES[dtype or job.dtype])
        self._decode = self._build(vae, self._latents, Place(self.device, self._latents.dtype, self._free))
        return {}

    def _free(self, device: torch.device) -> int:
        """The cap is the device's: of main memory, to offload to, there is what there is."""
        if self.limits is None or device.type != self.device.type:
            return free_bytes(device)
        return self.limits.free()

    def time(self) -> dict[str, Any]:
        """Seconds of one decode on the clock, and of this process's CPU time.

        On a GPU a decode before it warms up: kernels are loaded and chosen, and the allocator has memory again.
        """
        if self.device.type == "cuda":
            self._decode(self._latents)
        return dict(vars(timed(lambda: self._decode(self._latents), self.device)))

    def measure(self, reference: Path | None) -> dict[str, Any]:
        """Peak bytes beyond weights and latents, and how far the picture is from the reference's."""
        with PeakMemory(self.device) as peak:
            picture = self._decode(self._latents)
        answer: dict[str, Any] = {"peak_bytes": peak.bytes, "max_error": None, "psnr": None}
        if reference is not None:  # PyTorch 2.1 takes no Path here
            answer |= difference(picture.float().cpu(), torch.load(str(reference), mmap=True))
        return answer

    def save(self, path: Path) -> dict[str, Any]:
        """Decode and write the picture."""
        torch.save(self._decode(self._latents).float().cpu(), path)
        return {}
