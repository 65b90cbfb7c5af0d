"""A piece of work as the planner sees it, without the data; and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vae_lib.engine.compute import Operation
from vae_lib.engine.padding import ZEROS, Padding
from vae_lib.networks import TAESD, Architecture, WanConfig, frames_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Work:
    """What is to be done, and where.

    Attributes:
        config: the VAE's; for TAESD alone, None.
        operation: which of the two, or its name.
        height, width: of the latents.
        picture: height and width of the picture to encode, if they are no multiples of the downscale.
        batch: pictures; they are done one after the other. By the network of videos, latents of one (decode) or its
            frames (encode).
        device, dtype: where and in which floating-point type to compute.
        padding: what the convolutions find beyond the picture's edges.
        resident: whether the VAE's weights lie on the device in that dtype already.
        output_on_device: whether the result stays on the device.
        taesd: whether a TAESD is at hand; for a video of several frames there is none.
        latent_channels, video: of that TAESD; with a VAE of video it is always one of video.
        spare: the device of the routes that compute elsewhere.
    """

    config: Architecture | None
    operation: Operation
    height: int
    width: int
    batch: int
    device: torch.device
    dtype: torch.dtype
    padding: Padding = ZEROS
    resident: bool = True
    output_on_device: bool = True
    taesd: bool = False
    latent_channels: int = 4
    video: bool = False
    picture: tuple[int, int] | None = None
    spare: torch.device = CPU

    def __post_init__(self) -> None:
        object.__setattr__(self, "operation", Operation(self.operation))  # its name will do
        object.__setattr__(self, "video", self.video or isinstance(self.config, WanConfig))
        object.__setattr__(self, "taesd", self.taesd and self.frames == 1)

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return TAESD.downscale if self.config is None else self.config.downscale

    @property
    def frames(self) -> int:
        """Of the video; 1 for pictures."""
        if self.config is None or self.config.taps == 1:
            return 1
        return self.batch if self.operation is Operation.ENCODE else frames_of(self.config, self.batch)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the picture."""
        if self.picture is not None:
            return self.picture
        return self.height * self.downscale, self.width * self.downscale


@dataclass(frozen=True)
class Cost:
    """Cost of decoding or encoding a batch.

    Attributes:
        peak_bytes: what must be free on the device for the most bytes alive at once; the weights themselves are not
            counted, the copies that a pass prepares of them are.
        multiplications: scalar multiplications of convolutions, matrix products and attention.
        moved_bytes: bytes of activations read and written by everything else.
        transferred_bytes: bytes copied between host and device.
        exposed_bytes: those of them that nothing is computed beside: what a pass reads first and writes last.
        host_bytes: most bytes of activations that rest off the device at once.
        largest_bytes: of the largest array on the device.
        bands: bands processed.
        dispatches: operations that PyTorch is asked for.
    """

    peak_bytes: int = 0
    multiplications: int = 0
    moved_bytes: int = 0
    transferred_bytes: int = 0
    exposed_bytes: int = 0
    host_bytes: int = 0
    largest_bytes: int = 0
    bands: int = 0
    dispatches: int = 0
