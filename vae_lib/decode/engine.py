"""Run a network's passes over the pictures of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vae_lib.decode.buffers import DeviceStore, FeatureMap, HostStore
from vae_lib.decode.convolution import Linear
from vae_lib.decode.cost import count_bands
from vae_lib.decode.passes import Context, ConvPass, MapSize, Pass, run_attention_pass, run_conv_pass
from vae_lib.decode.program import INPUT, OUTPUT, Tiling, decoder_passes, encoder_passes
from vae_lib.errors import Cancelled, CheckpointError
from vae_lib.networks import AutoencoderKL

Progress = Callable[[int, int], None]


@torch.no_grad()
def decode(
    vae: AutoencoderKL,
    latents: Tensor,
    tiling: Tiling,
    *,
    device: torch.device,
    dtype: torch.dtype,
    wrap: bool = False,
    output_device: torch.device | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Tensor:
    """Decode unscaled latents (B, C, h, w) into pictures (B, 3, 8 h, 8 w), in [-1, 1] but not clamped.

    The weights are used where they are; those that are elsewhere or of another dtype are brought in layer by layer.

    Args:
        device, dtype: where and in which floating-point type to compute.
        wrap: pad circularly, for seamless textures.
        output_device: where the picture is to be put, by default ``device``.
        progress: called with (bands done, bands in all).
        cancelled: asked between bands.

    Raises:
        Cancelled: when ``cancelled`` says so.
        CheckpointError: when the weights hold no decoder.
    """
    if vae.decoder is None:
        raise CheckpointError("This VAE file holds only an encoder, so it cannot decode; choose a full VAE.")
    _, _, h, w = latents.shape
    z_size = MapSize(h, w, vae.config.z_channels)
    passes = decoder_passes(vae.decoder, z_size, tiling, device, dtype)
    scale = vae.downscale
    out = torch.empty(
        len(latents),
        h * scale,
        w * scale,
        vae.config.out_channels,
        dtype=dtype,
        device=output_device or device,
    )
    ticker = _Ticker(passes, z_size, len(latents), progress, cancelled)
    for index in range(len(latents)):
        z = _rows(latents[index], device, dtype)
        if vae.post_quant_conv is not None:
            z = Linear(vae.post_quant_conv, device, dtype)(z)
        _run(passes, z, out[index], tiling, device, dtype, wrap, ticker)
    return out.permute(0, 3, 1, 2)


@torch.no_grad()
def encode_moments(
    vae: AutoencoderKL,
    images: Tensor,
    tiling: Tiling,
    *,
    device: torch.device,
    dtype: torch.dtype,
    wrap: bool = False,
    output_device: torch.device | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, each (B, C, H / 8, W / 8), of pictures (B, 3, H, W) in [-1, 1]; not scaled.

    The arguments are those of `decode`; the log-variance is clamped to [-30, 20].
    """
    if vae.encoder is None:
        raise CheckpointError("This VAE file holds only a decoder, so it cannot encode; choose a full VAE.")
    count, channels, height, width = images.shape
    size = MapSize(height, width, channels)
    passes = encoder_passes(vae.encoder, size, tiling, device, dtype)
    scale, z2 = vae.downscale, vae.encoder.conv_out.out_channels
    quant = None if vae.quant_conv is None else Linear(vae.quant_conv, device, dtype)
    channels = z2 if quant is None else quant.out_channels
    out = torch.empty(count, height // scale, width // scale, channels, dtype=dtype, device=device)
    ticker = _Ticker(passes, size, count, progress, cancelled)
    for index in range(count):
        image = _rows(images[index], device, dtype)
        moments = out[index] if quant is None else out.new_empty(*out.shape[1:3], z2)
        _run(passes, image, moments, tiling, device, dtype, wrap, ticker)
        del image  # before the next one comes
        if quant is not None:
            quant.into(out[index], moments)
        del moments
    mean, log_variance = out.permute(0, 3, 1, 2).to(output_device or device).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def _rows(picture: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(channels, height, width) as a contiguous (height, width, channels) copy, made in one step."""
    rows = picture.permute(1, 2, 0)
    return torch.empty(rows.shape, dtype=dtype, device=device).copy_(rows)


def _run(
    passes: list[Pass],
    source: Tensor,
    out: Tensor,
    tiling: Tiling,
    device: torch.device,
    dtype: torch.dtype,
    wrap: bool,
    ticker: _Ticker,
) -> None:
    """One picture: (h, w, c) ``source`` through ``passes`` into (H, W, C) ``out``."""
    store = HostStore(device) if tiling.offload else DeviceStore()
    context = Context(device, dtype, store, wrap, ticker)
    context.maps = {INPUT: FeatureMap.of(source), OUTPUT: FeatureMap.of(out)}
    needed_until = {
        name: i for i, step in enumerate(passes) for name in (step.source, getattr(step, "add_to", ""))
    }
    try:
        for index, step in enumerate(passes):
            if isinstance(step, ConvPass):
                run_conv_pass(step, context)
            else:
                run_attention_pass(step, context)
            for name in [name for name, last in needed_until.items() if last == index]:
                context.maps.pop(name, None)
                context.statistics.pop(name, None)
    finally:
        context.maps.clear()
        store.close()


class _Ticker:
    """Counts bands, reports them and stops the work when it is told to."""

    def __init__(
        self,
        passes: list[Pass],
        source: MapSize,
        pictures: int,
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self._done, self._total = 0, pictures * count_bands(passes, source)
        self._progress, self._cancelled = progress, cancelled

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        if self._cancelled is not None and self._done < self._total and self._cancelled():
            raise Cancelled("Stopped: the picture was not finished.")
