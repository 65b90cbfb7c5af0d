"""Decode or encode the pictures of a batch, one after the other, or the frames of a video, by a network's passes."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lib.engine import programs
from vae_lib.engine.attention import run_attention_pass
from vae_lib.engine.buffers import DeviceStore, Memory
from vae_lib.engine.compute import Compute
from vae_lib.engine.context import Context
from vae_lib.engine.linear import Linear, tokens
from vae_lib.engine.maps import FeatureMap
from vae_lib.engine.padding import Padding
from vae_lib.engine.passes import (
    INPUT,
    OUTPUT,
    AttentionPass,
    ConvPass,
    MapSize,
    Pass,
    StreamPass,
    Tiling,
    count_bands,
)
from vae_lib.engine.run import run_conv_pass
from vae_lib.engine.stream import run_stream_pass
from vae_lib.errors import Cancelled, CheckpointError
from vae_lib.networks import Network, frames_of, in_patches, latents_of


@torch.no_grad()
def decode(vae: Network, latents: Tensor, tiling: Tiling, compute: Compute, memory: Memory | None = None) -> Tensor:
    """Decode unscaled latents (B, C, h, w) into pictures (B, 3, 8 h, 8 w), in [-1, 1] but not clamped.

    By the network of videos the B are one video's latents, and its frames come out: one of the first, and
    ``config.frame_ratio`` of each after it.

    The weights are used where they are; those that are elsewhere or of another dtype are brought in layer by layer.

    Args:
        memory: where arrays come from; the planner's is one that counts.

    Raises:
        Cancelled: when ``compute.cancelled`` says so.
        CheckpointError: when the weights hold no decoder.
    """
    if vae.decoder is None:
        raise CheckpointError("This VAE file holds only an encoder, so it cannot decode; choose a full VAE.")
    memory = memory or Memory(compute.device, compute.dtype)
    batch, _, h, w = latents.shape
    size, scale = MapSize(h, w, vae.config.z_channels), vae.downscale
    passes = programs.of(vae).decoder_passes(vae, size, tiling, compute)
    count = frames_of(vae.config, batch) if vae.config.taps > 1 else batch
    out = memory.pictures(count, vae.config.out_channels, h * scale, w * scale, compute.destination)
    ticker = _Ticker(passes, size, batch, compute)

    def given(index: int, frames: int = 1) -> FeatureMap:
        z = memory.picture(latents, index)
        if vae.post_quant_conv is not None:
            z = _pointwise(Linear(vae.post_quant_conv, memory), z)
        return FeatureMap.of(z, frames=frames)

    def place(index: int) -> FeatureMap:
        return FeatureMap.of(out.narrow(0, index, 1), vae.config.patch)

    def run(sources: list[FeatureMap], places: list[FeatureMap]) -> None:
        _run(passes, sources, places, _context(memory, tiling, compute.padding, ticker))

    if vae.config.taps > 1:
        run([given(*each) for each in memory.frames(batch, 1)], [place(index) for index in range(count)])
    else:
        for index in memory.each(range(batch), lambda index: None, {}):
            run([given(index)], [place(index)])
    return out


@torch.no_grad()
def encode_moments(
    vae: Network, images: Tensor, tiling: Tiling, compute: Compute, memory: Memory | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, each (B, C, H / 8, W / 8), of pictures (B, 3, H, W) in [-1, 1]; not scaled.

    The arguments are those of `decode`; the log-variance is clamped to [-30, 20]. Of a video's frames whose number is
    no multiple of ``config.frame_ratio`` and one more, the last ones are left out, as in the published code.
    """
    if vae.encoder is None:
        raise CheckpointError("This VAE file holds only a decoder, so it cannot encode; choose a full VAE.")
    memory = memory or Memory(compute.device, compute.dtype)
    batch, channels, height, width = images.shape
    scale, patch = vae.downscale, vae.config.patch
    size = MapSize(height // patch, width // patch, channels * patch**2)
    passes = programs.of(vae).encoder_passes(vae, size, tiling, compute)
    z2, (h, w) = 2 * vae.config.z_channels, (height // scale, width // scale)
    quant = None if vae.quant_conv is None else Linear(vae.quant_conv, memory)
    count, is_video = batch, vae.config.taps > 1
    if is_video:
        count = latents_of(vae.config, batch)
        batch = frames_of(vae.config, count)
    out = memory.pictures(count, z2 if quant is None else quant.out_channels, h, w, compute.device)
    ticker = _Ticker(passes, size, batch, compute)

    def given(index: int, frames: int = 1) -> FeatureMap:
        if is_video and patch == 1:  # read where they are: all of them at once would be a copy of the video
            return FeatureMap.of(images.narrow(0, index, 1), frames=frames)
        return FeatureMap.of(in_patches(memory.picture(images, index), patch), frames=frames)

    def run(sources: list[FeatureMap], numbers: range) -> None:
        places = [out.narrow(0, number, 1) for number in numbers]
        moments = places if quant is None else [memory.empty(z2, h, w) for _ in numbers]
        context = _context(memory, tiling, compute.padding, ticker)
        _run(passes, sources, [FeatureMap.of(each) for each in moments], context)
        if quant is not None:
            for target, made in zip(places, moments, strict=True):
                quant.into(target, made)

    if is_video:
        run([given(*each) for each in memory.frames(batch, vae.config.frame_ratio)], range(count))
    else:
        for index in memory.each(range(batch), lambda index: None, {}):
            run([given(index)], range(index, index + 1))
    mean, log_variance = out.to(compute.destination).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def _pointwise(linear: Linear, band: Tensor) -> Tensor:
    _, _, rows, width = band.shape
    return linear(tokens(band)).view(1, rows, width, linear.out_channels).permute(0, 3, 1, 2)


def _run(passes: list[Pass], sources: list[FeatureMap], places: list[FeatureMap], context: Context) -> None:
    """One picture, or the frames of a video: ``sources`` through ``passes`` into ``places``."""
    frames = [context, *(context.another() for _ in range(1, max(len(sources), len(places))))]
    for name, maps in ((INPUT, sources), (OUTPUT, places)):
        for frame, given in zip(frames, maps, strict=False):
            frame.maps[name] = given
    del sources  # so that each goes when it is not needed
    needed_until = {name: i for i, step in enumerate(passes) for name in (step.source, getattr(step, "add_to", ""))}
    try:
        for index, step in enumerate(passes):
            match step:
                case StreamPass():
                    run_stream_pass(step, frames)
                case AttentionPass():
                    for frame in frames:
                        if step.source in frame.maps:
                            with frame.memory.repeated(frame.maps[step.source].frames):
                                run_attention_pass(step, frame)
                case ConvPass():
                    run_conv_pass(step, context)
            for name in [name for name, last in needed_until.items() if last == index]:
                for frame in frames:
                    frame.maps.pop(name, None)
                    frame.statistics.pop(name, None)
    finally:
        for frame in frames:
            frame.maps.clear()
        context.store.close()


def _context(memory: Memory, tiling: Tiling, padding: Padding, ticker: _Ticker) -> Context:
    return Context(memory, memory.host_store() if tiling.offload else DeviceStore(), padding, ticker)


class _Ticker:
    """Counts bands, reports them and stops the work on demand."""

    def __init__(self, passes: list[Pass], source: MapSize, pictures: int, compute: Compute) -> None:
        self._done, self._total = 0, pictures * count_bands(passes, source)
        self._progress, self._cancelled = compute.progress, compute.cancelled

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        if self._cancelled is not None and self._done < self._total and self._cancelled():
            raise Cancelled("Stopped: the picture was not finished.")
