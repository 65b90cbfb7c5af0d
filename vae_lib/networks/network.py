"""What the engine, the planner and the faces ask of a network: one file here an architecture, and one in
``engine.programs``."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vae_lib.device import kinds
from vae_lib.errors import CheckpointError, InputError
from vae_lib.networks.parts import in_patches, out_of_patches


class Architecture(Protocol):
    """The shape of a network, as a value that can be hashed: enough to predict what it takes."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that ``decode`` takes and ``encode_moments`` gives."""

    @property
    def z_channels(self) -> int:
        """Channels that the decoder's first layer reads; the encoder's last one writes twice as many."""

    @property
    def in_channels(self) -> int:
        """Channels of the picture that is encoded."""

    @property
    def out_channels(self) -> int:
        """Channels of the picture that is decoded."""

    @property
    def outer_channels(self) -> int:
        """Channels of the layers at the picture's resolution, whose activations are the largest; a pixel's share."""

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""

    @property
    def patch(self) -> int:
        """Pixels along each side of the squares that the network sees as one: 1 for nearly all."""

    @property
    def taps(self) -> int:
        """Frames of a video that a convolution sees: 1 for a network of pictures, which knows no frames before."""

    @property
    def frame_ratio(self) -> int:
        """Frames of a video for each of its latents but the first, which is one frame."""

    def __hash__(self) -> int: ...


def frames_of(config: Architecture, latents: int) -> int:
    """How many frames a video of so many latents has."""
    return 1 + config.frame_ratio * (latents - 1)


def latents_of(config: Architecture, frames: int) -> int:
    """How many latents a video of so many frames has; frames that fill none are left over."""
    return 1 + (frames - 1) // config.frame_ratio


def video_batch(config: Architecture, frames: int, decodes: bool, name: str) -> int:
    """What a video of so many frames is decoded from, latents, or encoded from, its frames.

    Raises:
        InputError: when the VAE of that ``name`` makes none of so many.
    """
    latents = latents_of(config, frames)
    if (fewer := frames_of(config, latents)) != frames:
        raise InputError(
            f"{name} makes no videos of {frames} frames, as its latents but the first are {config.frame_ratio} frames "
            f"each; the nearest numbers are {fewer} and {fewer + config.frame_ratio}."
        )
    return latents if decodes else frames


class Network(nn.Module):
    """A VAE in evaluation mode. No scaling and no shift is applied in it.

    Attributes:
        encoder, decoder: None where the weights have none.
        quant_conv, post_quant_conv: 1x1 convolutions after the encoder and before the decoder; None in VAEs without.
    """

    config: Architecture
    encoder: nn.Module | None
    decoder: nn.Module | None
    quant_conv: nn.Conv2d | None
    post_quant_conv: nn.Conv2d | None

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return self.config.downscale

    def lies_on(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether all weights are on such a device in that dtype; a host may keep some of them in main memory."""
        kind = kinds.of(device)
        return all(kinds.of(weight.device) is kind and weight.dtype == dtype for weight in self.parameters())

    def encode_moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, not scaled, of pictures (B, in_channels, H, W) in [-1, 1].

        Both are (B, latent_channels, h, w). The log-variance is clamped to [-30, 20], as it was in training.

        Raises:
            CheckpointError: when the weights hold no encoder.
        """
        if self.encoder is None:
            raise CheckpointError("This VAE file holds only a decoder, so it cannot encode; choose a full VAE.")
        moments = self.encoder(in_patches(image, self.config.patch))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, out_channels, H, W), in [-1, 1] but not clamped, of unscaled latents (B, latent_channels, h, w).

        Raises:
            CheckpointError: when the weights hold no decoder.
        """
        if self.decoder is None:
            raise CheckpointError("This VAE file holds only an encoder, so it cannot decode; choose a full VAE.")
        z = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return out_of_patches(cast(Tensor, self.decoder(z)), self.config.patch)
