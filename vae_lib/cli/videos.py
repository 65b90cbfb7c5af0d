"""Videos on disk: frames as pictures, numbered in order, or one file where PyAV is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_lib.errors import InputError
from vae_lib.files import write_atomically

# By suffix: the container's name and the encoder.
_FORMATS = {".mp4": ("mp4", "libx264"), ".mov": ("mov", "libx264"), ".mkv": ("matroska", "libx264")}
_QUALITY = {"crf": "16"}  # 23 is the encoder's own, 0 would lose nothing but colour


def is_video(path: Path) -> bool:
    """Whether a file of this name is one video, and not a picture for each frame."""
    return path.suffix.lower() in _FORMATS


def frame_names(path: Path, count: int) -> list[Path]:
    """The files that ``count`` frames are written to, in an order that sorts."""
    digits = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(1, count + 1)]


def check_video(path: Path, channels: int) -> None:
    """See beforehand whether a video can be written.

    Raises:
        InputError: when it cannot.
    """
    if channels != 3:
        raise InputError(f"This VAE makes frames of {channels} channels, which no video has; write them as pictures.")
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"To write {path.name}, the package PyAV is needed, which is not installed. Run `pip install av`, or write "
            f"the frames as pictures with -o {path.with_suffix('.png').name}."
        ) from error
    _, encoder = _FORMATS[path.suffix.lower()]
    if encoder not in av.codecs_available:
        raise InputError(
            f"The PyAV that is installed has no {encoder}, so it cannot write {path.name}; write the frames as "
            f"pictures with -o {path.with_suffix('.png').name}."
        )


def write_video(frames: Tensor, path: Path, fps: int) -> None:
    """Write frames (T, 3, H, W) in [-1, 1], ``fps`` of them a second.

    Raises:
        InputError: when the file cannot be written.
    """
    import av

    container_format, encoder = _FORMATS[path.suffix.lower()]

    def write(aside: Path) -> None:
        with av.open(str(aside), "w", format=container_format) as container:
            stream: Any = container.add_stream(encoder, rate=fps, options=_QUALITY)
            stream.height, stream.width = frames.shape[2:]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                pixels = frame.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)  # (3, H, W)
                picture = av.VideoFrame.from_ndarray(pixels.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())

    try:
        write_atomically(path, write)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise InputError(f"{path} was not written: {error}.") from error
