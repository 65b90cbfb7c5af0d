"""One piece of work done twice, by the plain network and by the engine, to hold one against the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lib.device import kinds
from vae_lib.device.memory import synchronize
from vae_lib.engine import batch as engine
from vae_lib.engine import plain
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.passes import Tiling
from vae_lib.networks import Network
from vae_lib.planning.work import Work

# How far a picture may be from the plain network's in the same dtype, as a share of that one's root mean square. A few
# roundings (on CUDA float32 convolves in TF32 by default) stay far below, a wrong kernel far above.
ALLOWED = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Trial:
    """One piece of work, done by the plain network and by us; pictures (or mean latents) come in float32."""

    vae: Network
    operation: Operation
    side: int  # pixels
    compute: Compute

    @property
    def work(self) -> Work:
        latents = self.side // self.vae.downscale
        compute = self.compute
        return Work(self.vae.config, self.operation, latents, latents, 1, compute.device, compute.dtype)

    def given(self) -> Tensor:
        """Latents or a picture of noise, the same ones every time; the user's random numbers are left alone."""
        generator = torch.Generator().manual_seed(1)
        decodes = self.operation is Operation.DECODE
        channels = self.vae.latent_channels if decodes else self.vae.config.in_channels
        side = self.side // self.vae.downscale if decodes else self.side
        noise = torch.randn(1, channels, side, side, generator=generator)
        return noise.to(self.compute.device, self.compute.dtype)

    def plain(self, given: Tensor) -> Tensor:
        result, _ = plain.run(self.vae, self.operation, given, self.compute)
        return result.float()

    def ours(self, given: Tensor, tiling: Tiling) -> Tensor:
        if self.operation is Operation.DECODE:
            return engine.decode(self.vae, given, tiling, self.compute).float()
        return engine.encode_moments(self.vae, given, tiling, self.compute)[0].float()

    def same(self, result: Tensor, wanted: Tensor) -> bool:
        """But for rounding in the trial's dtype."""
        error, size = (torch.linalg.vector_norm(x) for x in (result - wanted, wanted))
        return bool(error <= ALLOWED[self.compute.dtype] * size)  # not so if there are NaN

    def timed(self, run: Callable[[], Tensor]) -> tuple[Tensor, float]:
        """The result, and seconds on the clock to the end of the work on the device."""
        synchronize(self.compute.device)
        started = time.perf_counter()
        result = run()
        synchronize(self.compute.device)
        return result, max(time.perf_counter() - started, 1e-9)


def device_name(device: torch.device) -> str:
    """As its driver calls it."""
    return kinds.of(device).card(device)
