"""Pictures and videos of a network of videos: its host gives and takes frames, (B, C, T, h, w).

Ours takes pictures (B, C, h, w), or the frames of one video (T, C, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_video(x: Tensor) -> bool:
    """Whether these are several frames."""
    return is_video_shape(x.shape)


def is_video_shape(shape: Sequence[int]) -> bool:
    return len(shape) == 5 and shape[2] > 1


def parts(x: Tensor) -> list[Tensor]:
    """What is computed at once: all pictures, (B, C, 1, h, w) or (B, C, h, w), or each video's frames; views."""
    if is_video(x):
        return [video.transpose(0, 1) for video in x]
    return [x.squeeze(2) if x.ndim == 5 else x]


def together(made: Sequence[Tensor], x: Tensor) -> Tensor:
    """What was made of ``parts(x)``, with the axis of time if ``x`` has it."""
    if is_video(x):
        videos = [frames.transpose(0, 1).unsqueeze(0) for frames in made]
        return videos[0] if len(videos) == 1 else torch.cat(videos)
    (pictures,) = made
    return pictures.unsqueeze(2) if x.ndim == 5 else pictures
