"""3x3 convolutions over a padded window of rows, and the cheaper equivalents that this decoder runs.

A window is a picture (1, channels, rows, columns), channels last, that has the rows of the padding in it; the columns
are in it too, or padded by the kernel. Four algorithms give the same numbers up to rounding:

- ``direct``: PyTorch's convolution.
- ``planar``: the same on a copy laid out by channels (NCHW). On the CPU in float32 that kernel rounds three times less
  than the one for channels last (it does not add up all products in one sum), and is a little slower.
- ``subpixel``: nearest-neighbour upsampling by 2 followed by a 3x3 convolution is four 2x2 convolutions on the small
  input, one for each output parity (Shi et al. 2016, arXiv:1609.05158, read backwards), here as one with four times the
  channels. The upsampled picture never exists, and 16 multiplications replace 36.
- ``winograd``: F(2x2, 3x3) of Lavin & Gray 2015 (arXiv:1509.09308): 16 multiplications replace 36; after an upsampling
  the repeated rows cancel one product in each direction, and 9 replace 36. Its transforms only add and subtract, and in
  float32 its error is no larger than the direct convolution's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.device import kernels
from vae_lib.device.dtypes import at_least_float32
from vae_lib.engine.buffers import Memory, Workspace
from vae_lib.engine.compute import Compute
from vae_lib.engine.padding import Edge

# Tiles multiplied at once: enough for a matrix product to run at full speed, few enough to stay in the cache.
WINOGRAD_TILES = 256


@dataclass(frozen=True)
class ConvShape:
    """What a convolution does to a picture; no weights.

    Attributes:
        scale: "same", "up" (nearest 2x, then convolve) or "down" (stride 2, padded at the bottom and right).
        algorithm: "direct" or "planar" (with scale "up" each is "subpixel"), or "winograd".
        pads: whether the kernel pads the columns itself; else they are in the window.
    """

    in_channels: int
    out_channels: int
    scale: str = "same"
    algorithm: str = "direct"
    pads: bool = False

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        if self.scale == "up":
            return 2 * height, 2 * width
        return (height // 2, width // 2) if self.scale == "down" else (height, width)

    def input_rows(self, first: int, last: int) -> tuple[int, int]:
        """Input rows (padding included, so possibly outside the picture) that output rows first..last-1 need."""
        if self.scale == "up":
            return first // 2 - 1, (last + 1) // 2 + 1
        return (2 * first, 2 * last + 1) if self.scale == "down" else (first - 1, last + 1)

    def output_rows(self, first: int, last: int) -> tuple[int, int]:
        """The output rows actually computed when rows first..last-1 are asked for."""
        return (first // 2 * 2, (last + 1) // 2 * 2) if self.scale == "up" else (first, last)

    def window(self, rows: int, width: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the window for ``rows`` output rows of an input ``width`` columns wide."""
        if self.scale == "down":
            return self.in_channels, 2 * rows + 1, width + 1
        columns = 0 if self.pads else 2
        if self.scale == "up":
            return self.in_channels, rows // 2 + 2, width + columns
        if self.algorithm == "winograd":  # whole tiles of 2x2
            rows, width = rows + rows % 2, width + width % 2
        return self.in_channels, rows + 2, width + columns

    @property
    def left_padding(self) -> int:
        """Columns of the window before the picture's first."""
        return 0 if self.pads or self.scale == "down" else 1


class Convolution:
    """One prepared 3x3 convolution. The weights are transformed for one pass and dropped with it.

    Attributes:
        offset: the bias, (channels,), if it is left to whoever uses the result; else None.
    """

    def __init__(self, shape: ConvShape, module: nn.Conv2d, memory: Memory, bias_apart: bool = False) -> None:
        self.shape = shape
        weight = memory.parameter(module.weight)
        bias = None if module.bias is None else memory.parameter(module.bias)
        self.offset: Tensor | None = None
        if bias_apart and bias is not None:
            self.offset, bias = bias, None
        if shape.algorithm == "winograd":
            self._weight = _winograd_weight(weight, shape.scale == "up")
        elif shape.scale == "up":
            self._weight = _subpixel_weight(weight, memory, shape.algorithm == "planar")
            bias = None if bias is None else torch.stack([bias] * 4).view(-1)
        elif shape.algorithm == "planar":
            self._weight = weight  # the module's own layout
        elif module.weight.is_contiguous(memory_format=torch.channels_last):
            self._weight = weight  # nothing to copy, in the planner's twin either
        else:
            self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias

    def __call__(self, window: Tensor, rows: int, width: int, workspace: Workspace, whole: bool = False) -> Tensor:
        """``rows`` output rows (1, channels, rows, columns), channels last, of an input ``width`` columns wide.

        ``window`` is as `ConvShape.window` says, or with ``whole`` the picture itself.
        """
        if self.shape.algorithm == "winograd":
            return self._winograd([window], rows, width, workspace)
        return self._direct(window, self._weight, rows, width, whole)

    def over_frames(self, windows: list[Tensor], rows: int, width: int, workspace: Workspace) -> Tensor:
        """The same of a video's frame, whose window is the last of ``windows``; before it are those of the frames that
        it sees. At the video's beginning they are fewer than the weights are for, of which the last ones count. They
        are given away: one that nobody else holds goes as soon as it can.
        """
        if self.shape.algorithm == "winograd":
            return self._winograd(windows, rows, width, workspace)
        window, count = windows[-1], len(windows)
        if count > 1:
            _, channels, height, columns = window.shape
            window = workspace.band("frames", (count * channels, height, columns), window.dtype)
            for number in range(count):
                window.narrow(1, number * channels, channels).copy_(windows.pop(0))
        return self._direct(window, self._last(window.shape[1]), rows, width)

    def _last(self, channels: int) -> Tensor:
        """The weights for so many channels of the input, the last ones."""
        surplus = self.shape.in_channels - channels
        return self._weight.narrow(1, surplus, channels) if surplus else self._weight

    def _direct(self, window: Tensor, weight: Tensor, rows: int, width: int, whole: bool = False) -> Tensor:
        shape = self.shape
        if shape.algorithm == "planar":
            window = window.contiguous()
        padding = (int(whole), int(shape.pads))
        made = F.conv2d(window, weight, self._bias, 2 if shape.scale == "down" else 1, padding)
        del window
        if shape.scale == "up":
            return self._interleaved(made, rows, width)
        if shape.algorithm == "planar" or not made.is_contiguous(memory_format=torch.channels_last):
            made = made.contiguous(memory_format=torch.channels_last)
        return made

    def _interleaved(self, made: Tensor, rows: int, width: int) -> Tensor:
        """(1, 4 C, rows / 2 + 1, width + 1), the parities' results, to (1, C, rows, 2 width): pixel (2 r + i, 2 c + j)
        is at (r + i, c + j) of the result for parity (i, j).
        """
        channels = self.shape.out_channels
        out = made.new_empty(1, rows, 2 * width, channels)
        s, r, c = (made.stride(dim) for dim in (1, 2, 3))
        parities = (rows // 2, 2, width, 2, channels)
        steps = (r, r + 2 * channels * s, c, c + channels * s, s)
        out.view(*parities).copy_(made.as_strided(parities, steps))
        return out.permute(0, 3, 1, 2)

    def _winograd(self, windows: Sequence[Tensor], rows: int, width: int, workspace: Workspace) -> Tensor:
        up = self.shape.scale == "up"
        windows = [window.permute(0, 2, 3, 1).select(0, 0) for window in windows]  # (rows, columns, channels)
        window, frames = windows[0], len(windows)
        channels = window.shape[2]
        out = window.new_empty(rows, 2 * width if up else width, self.shape.out_channels)
        tile_rows, tile_columns = (rows + 1) // 2, width if up else (width + 1) // 2
        most_columns = min(tile_columns, WINOGRAD_TILES)
        most_rows = max(1, min(tile_rows, WINOGRAD_TILES // most_columns))
        step = 1 if up else 2  # input rows from one tile to the next
        chunks = [
            (top, left, min(most_rows, tile_rows - top), min(most_columns, tile_columns - left))
            for top in range(0, tile_rows, most_rows)
            for left in range(0, tile_columns, most_columns)
        ]
        # Those of the largest chunk serve all.
        self._tile_buffers(most_rows, most_columns, channels, frames, window.dtype, workspace)
        memory, has_bias = workspace.memory, self._bias is not None
        kind = lambda chunk: (self.shape, frames, window.dtype, has_bias, chunk[2:])  # noqa: E731
        for top, left, r, c in memory.each(chunks, kind, memory.done):
            across, down = slice(step * left, step * (left + c) + 2), slice(step * top, step * (top + r) + 2)
            target = out[2 * top : 2 * (top + r), 2 * left : 2 * (left + c)]
            self._winograd_tiles([window[down, across] for window in windows], target, r, c, workspace)
        return out.view(1, *out.shape).permute(0, 3, 1, 2)

    def _tile_buffers(
        self, r: int, c: int, channels: int, frames: int, dtype: torch.dtype, workspace: Workspace
    ) -> list[Tensor]:
        """For ``r`` x ``c`` tiles: transformed along the rows, transformed, multiplied, and half transformed back."""
        made = self.shape.out_channels
        n, columns = (3, c + 2) if self.shape.scale == "up" else (4, 2 * c + 2)
        shapes = {
            "rows": (n, r, columns, channels),
            "tiles": (n, n, r, c, frames * channels),
            "products": (n, n, r, c, made),
            "sums": (2, n, r, c, made),
        }
        return [workspace.take(f"winograd {name}", shape, dtype) for name, shape in shapes.items()]

    def _winograd_tiles(self, parts: Sequence[Tensor], out: Tensor, r: int, c: int, workspace: Workspace) -> None:
        """``r`` x ``c`` tiles of 2x2 output pixels: transform, one batched matrix product, transform back."""
        shape, dtype = self.shape, parts[0].dtype
        up = shape.scale == "up"
        n = 3 if up else 4
        transform = _transform_upsampled if up else _transform
        frames, channels = len(parts), parts[0].shape[2]
        by_rows, tiles, products, sums = self._tile_buffers(r, c, channels, frames, dtype, workspace)
        for part, own in zip(parts, [tiles] if frames == 1 else tiles.chunk(frames, -1), strict=True):
            transform(part, list(by_rows.unbind(0)), 0, r)
            transform(by_rows, [own.select(1, i) for i in range(n)], 1, c)
        torch.bmm(
            tiles.view(n * n, r * c, frames * channels),
            self._last(frames * channels),
            out=products.view(n * n, r * c, shape.out_channels),
        )
        if self._bias is not None:
            products[1, 1].add_(self._bias)  # the product that enters all four pixels with weight one
        for y in (0, 1):
            _transform_back_one(list(products.unbind(0)), sums[y], y)
            row = out[y::2]
            columns = [row[:, x::2] for x in (0, 1)]
            part_sums = sums[y, :, : row.shape[0]].unbind(0)
            for x in (0, 1):
                _transform_back_one([p[:, : columns[x].shape[1]] for p in part_sums], columns[x], x)


def _subpixel_weight(weight: Tensor, memory: Memory, planar: bool) -> Tensor:
    """(O, I, 3, 3) -> (4 * O, I, 2, 2): the taps that fall on the same small pixel added up, in float32.

    The first axis runs over the output row's parity, the column's, and O. In half precision the four sums of a pixel
    are rounded one after the other, the coarsest first, each with the error of those before (as Floyd & Steinberg 1976
    pass it on): where neighbours are alike only the last one's is left, and that tap is finer than a sum.
    """
    out, channels = weight.shape[:2]
    order = (2, 2, out, channels, 2, 2) if planar else (2, 2, out, 2, 2, channels)
    result = memory.flat(16 * out * channels).view(*order)
    error: Tensor | None = None
    for two_rows, rows in _doubled_taps(weight.unbind(2)):  # (O, I, 3, row parity)
        for two_columns, taps in _doubled_taps(rows.unbind(2)):  # (O, I, row parity, column parity)
            target = _places(result, planar, two_rows, two_columns)
            if error is not None:
                taps = taps + error
            target.copy_(taps)
            if memory.dtype != taps.dtype:
                error = taps - target
    if planar:
        return result.view(4 * out, channels, 2, 2)
    return result.view(4 * out, 2, 2, channels).permute(0, 3, 1, 2)


def _doubled_taps(taps: Sequence[Tensor]) -> Iterator[tuple[bool, Tensor]]:
    """Three taps on a doubled picture as two on the small one, for its even and its odd pixels along a new last axis.

    First where two come together (an even pixel's second, an odd one's first), then where there is one.
    """
    first, second, third = (tap.to(at_least_float32(tap.dtype)) for tap in taps)
    yield True, torch.stack((second + third, first + second), -1)
    yield False, torch.stack((first, third), -1)


def _places(result: Tensor, planar: bool, two_rows: bool, two_columns: bool) -> Tensor:
    """Where they belong in `_subpixel_weight`'s ``result``, as (O, I, row parity, column parity)."""
    row, column, out, *rest = (result.stride(dim) for dim in range(6))
    channel, small_row, small_column = rest if planar else (rest[2], *rest[:2])
    strides = (
        out,
        channel,
        row - small_row if two_rows else row + small_row,
        column - small_column if two_columns else column + small_column,
    )
    size = (result.shape[2], result.shape[3 if planar else 5], 2, 2)
    return result.as_strided(size, strides, two_rows * small_row + two_columns * small_column)


def _winograd_weight(weight: Tensor, upsampled: bool) -> Tensor:
    """(O, I, 3, 3) -> (n * n, I, O), the kernel in the transform's domain; n = 4, or 3 after an upsampling."""
    rows = _winograd_kernel(weight.permute(2, 3, 1, 0), upsampled)
    both = _winograd_kernel(rows.transpose(0, 1), upsampled).transpose(0, 1)
    return both.reshape(-1, weight.shape[1], weight.shape[0])


def _winograd_kernel(taps: Tensor, upsampled: bool) -> Tensor:
    first, middle, last = taps.unbind(0)
    if upsampled:
        return torch.stack((first, first + middle + last, last))
    half, side = middle / 2, (first + last) / 2
    return torch.stack((first, side + half, side - half, last))


def _transform(source: Tensor, out: list[Tensor], dim: int, tiles: int) -> None:
    """Input transform along ``dim`` (0 rows; 1 columns of every leading part): tiles of 4 with a stride of 2."""
    axis = 0 if dim == 0 else 2
    d = [source.narrow(axis, i, 2 * tiles - 1) for i in range(4)]
    d = [t[::2] if dim == 0 else t[:, :, ::2] for t in d]
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _transform_upsampled(source: Tensor, out: list[Tensor], dim: int, tiles: int) -> None:
    """The same on a doubled input, where a tile is (a, b, b, c): one of the four differences is zero."""
    axis = 0 if dim == 0 else 2
    a, b, c = (source.narrow(axis, i, tiles) for i in range(3))
    torch.sub(a, b, out=out[0])
    out[1].copy_(b)
    torch.sub(b, c, out=out[2])


def _transform_back_one(m: list[Tensor], out: Tensor, parity: int) -> None:
    """Output transform: the even pixel is m0 + m1 (+ m2), the odd one m1 (- m2) - m3."""
    if parity == 0:
        torch.add(m[0], m[1], out=out)
        if len(m) == 4:
            out.add_(m[2])
    else:
        torch.sub(m[1], m[2], out=out)
        if len(m) == 4:
            out.sub_(m[3])


def best_shape(in_channels: int, out_channels: int, scale: str, pixels: int, compute: Compute) -> ConvShape:
    """The algorithm that is fastest for this convolution there, of a picture of so many ``pixels``."""
    worth_it = min(in_channels, out_channels) >= 64 and pixels >= 2048 and scale != "down"
    algorithm = "direct"
    if kernels.of(compute.device, compute.dtype).winograd:
        algorithm = "winograd" if worth_it else "planar" if in_channels >= 64 else "direct"
    pads = algorithm != "winograd" and scale != "down" and compute.padding.width is Edge.ZEROS
    return ConvShape(in_channels, out_channels, scale, algorithm, pads)
