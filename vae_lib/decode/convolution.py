"""3x3 convolutions over a padded window of rows, and the cheaper equivalents that this decoder runs.

A window is (rows, columns, channels) with the padding already in it, so that no kernel here pads. Four algorithms give
the same numbers up to rounding:

- ``direct``: PyTorch's convolution.
- ``planar``: the same on a copy laid out by channels (NCHW). On the CPU in float32 that kernel rounds three times less
  than the one for channels last (it does not add up all products in one sum), and is a little slower.
- ``subpixel``: nearest-neighbour upsampling by 2 followed by a 3x3 convolution is four 2x2 convolutions on the small
  input, one for each output parity (Shi et al. 2016, arXiv:1609.05158, read backwards). The upsampled tensor never
  exists, and 16 multiplications replace 36.
- ``winograd``: F(2x2, 3x3) of Lavin & Gray 2015 (arXiv:1509.09308): 16 multiplications replace 36; after an upsampling
  the repeated rows cancel one product in each direction, and 9 replace 36. Its transforms only add and subtract, and in
  float32 its error is no larger than the direct convolution's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_lib.decode.buffers import Workspace, nbytes

# Tiles multiplied at once: enough for a matrix product to run at full speed, few enough to stay in the cache.
WINOGRAD_TILES = 256


@dataclass(frozen=True)
class ConvShape:
    """What a convolution does to a picture, and what it costs; no weights."""

    in_channels: int
    out_channels: int
    scale: str = "same"  # "same", "up" (nearest 2x, then convolve) or "down" (stride 2, padded at the bottom and right)
    algorithm: str = "direct"  # or "planar" (with scale "up" each is "subpixel"), or "winograd"

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
        """Shape of the padded window that gives ``rows`` output rows, from an input ``width`` columns wide."""
        if self.scale == "up":
            return rows // 2 + 2, width + 2, self.in_channels
        if self.scale == "down":
            return 2 * rows + 1, width + 1, self.in_channels
        even = (rows + rows % 2, width + width % 2) if self.algorithm == "winograd" else (rows, width)
        return even[0] + 2, even[1] + 2, self.in_channels

    @property
    def left_padding(self) -> int:
        return 0 if self.scale == "down" else 1

    def multiplications(self, rows: int, width: int) -> int:
        """Scalar multiplications for ``rows`` output rows from an input ``width`` columns wide."""
        pairs = self.in_channels * self.out_channels
        if self.scale == "up":
            return (9 if self.algorithm == "winograd" else 16) * (rows // 2) * width * pairs
        if self.scale == "down":
            return 9 * rows * (width // 2) * pairs
        return (4 if self.algorithm == "winograd" else 9) * rows * width * pairs

    def _tile_chunk(self, rows: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles multiplied at once."""
        tile_rows, tile_columns = (rows + 1) // 2, width if self.scale == "up" else (width + 1) // 2
        columns = min(tile_columns, WINOGRAD_TILES)
        return max(1, min(tile_rows, WINOGRAD_TILES // columns)), columns

    def workspace(self, rows: int, width: int) -> dict[str, int]:
        """Elements of each scratch buffer that the convolution takes (its window and its output not counted)."""
        if self.algorithm != "winograd":
            return {}
        r, c = self._tile_chunk(rows, width)
        n, span = (3, c + 2) if self.scale == "up" else (4, 2 * c + 2)
        return {
            "winograd rows": n * r * span * self.in_channels,
            "winograd tiles": n * n * r * c * self.in_channels,
            "winograd products": n * n * r * c * self.out_channels,
            "winograd sums": 2 * n * r * c * self.out_channels,
        }

    def transient_bytes(self, rows: int, width: int, dtype: torch.dtype) -> int:
        """Freshly allocated bytes beside the output while the convolution runs."""
        if self.algorithm == "winograd":
            return 0
        planar = self.algorithm == "planar"
        if self.scale == "up":
            both = nbytes(rows // 2, width + 1, 2 * self.out_channels, dtype=dtype)
            return both + planar * nbytes(rows // 2 + 1, width + 2, self.in_channels, dtype=dtype)
        made = nbytes(rows, width // 2 if self.scale == "down" else width, self.out_channels, dtype=dtype)
        return planar * max(nbytes(*self.window(rows, width), dtype=dtype), made)

    def weight_bytes(self, dtype: torch.dtype, resident: bool) -> tuple[int, int]:
        """(bytes kept while the pass runs, peak bytes while the weights are prepared).

        ``resident`` says that the module's weights are on the device, in ``dtype``.
        """
        pairs, size = self.in_channels * self.out_channels, dtype.itemsize
        bias = self.out_channels * size * (not resident)
        moved = 9 * pairs * size * (not resident)
        if self.algorithm == "winograd":
            kept = (9 if self.scale == "up" else 16) * pairs * size
            by_rows = (9 if self.scale == "up" else 12) * pairs * size
            return kept + bias, moved + by_rows + max(kept, 3 * 3 * pairs * size) + kept + bias
        if self.scale == "up":
            kept = 16 * pairs * size
            return kept + 2 * self.out_channels * size, moved + kept + pairs * 4 + bias
        if self.algorithm == "planar":  # the module's own layout
            return moved + bias, moved + bias
        kept = 9 * pairs * size
        return kept + bias, kept + moved + bias


class Convolution:
    """One prepared 3x3 convolution. The weights are transformed for one pass and dropped with it."""

    def __init__(self, shape: ConvShape, module: nn.Conv2d, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = shape
        weight = module.weight.detach()
        self._bias = None if module.bias is None else module.bias.detach().to(device, dtype)
        if shape.algorithm == "winograd":
            self._weight = _winograd_weight(weight.to(device, dtype), shape.scale == "up")
        elif shape.scale == "up":
            self._weight = _subpixel_weight(weight.to(device, dtype), shape.algorithm == "planar")
            self._bias = None if self._bias is None else self._bias.repeat(2)
        else:
            self._weight = self._laid_out(weight.to(device, dtype))

    def __call__(self, window: Tensor, rows: int, width: int, workspace: Workspace) -> Tensor:
        """Convolve a padded window (see `ConvShape.window`) into ``rows`` output rows: (rows, columns, channels)."""
        if self.shape.algorithm == "winograd":
            return self._winograd(window, rows, width, workspace)
        if self.shape.scale == "up":
            return self._subpixel(window, rows, width)
        return self._conv2d(window, self._weight, 2 if self.shape.scale == "down" else 1).contiguous()

    def _laid_out(self, tensor: Tensor) -> Tensor:
        """(N, C, H, W) in the memory format of the kernel that is wanted."""
        planar = self.shape.algorithm == "planar"
        return tensor.contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)

    def _conv2d(self, window: Tensor, weight: Tensor, stride: int) -> Tensor:
        """Unpadded convolution of (rows, columns, channels); the result's memory is in the kernel's order."""
        given = self._laid_out(window.permute(2, 0, 1).unsqueeze(0))
        return F.conv2d(given, weight, self._bias, stride).squeeze(0).permute(1, 2, 0)

    def _subpixel(self, window: Tensor, rows: int, width: int) -> Tensor:
        channels = self.shape.out_channels
        out = window.new_empty(rows, 2 * width, channels)
        for y in (0, 1):  # both column parities at once: column slices of the window would have to be copied
            both = self._conv2d(window[y : y + rows // 2 + 1], self._weight[y], 1)
            out[y::2, 0::2] = both[:, :width, :channels]
            out[y::2, 1::2] = both[:, 1:, channels:]
            del both
        return out

    def _winograd(self, window: Tensor, rows: int, width: int, workspace: Workspace) -> Tensor:
        up = self.shape.scale == "up"
        out = window.new_empty(rows, 2 * width if up else width, self.shape.out_channels)
        tile_rows, tile_columns = (rows + 1) // 2, width if up else (width + 1) // 2
        chunk_rows, chunk_columns = self.shape._tile_chunk(rows, width)
        step = 1 if up else 2  # input rows from one tile to the next
        for top in range(0, tile_rows, chunk_rows):
            r = min(chunk_rows, tile_rows - top)
            for left in range(0, tile_columns, chunk_columns):
                c = min(chunk_columns, tile_columns - left)
                part = window[step * top : step * (top + r) + 2, step * left : step * (left + c) + 2]
                target = out[2 * top : 2 * (top + r), 2 * left : 2 * (left + c)]
                self._winograd_tiles(part, target, r, c, workspace)
        return out

    def _winograd_tiles(self, part: Tensor, out: Tensor, r: int, c: int, workspace: Workspace) -> None:
        """``r`` x ``c`` tiles of 2x2 output pixels: transform, one batched matrix product, transform back."""
        shape, dtype = self.shape, part.dtype
        up = shape.scale == "up"
        n = 3 if up else 4
        transform = _transform_upsampled if up else _transform
        by_rows = workspace.take("winograd rows", (n, r, part.shape[1], shape.in_channels), dtype)
        tiles = workspace.take("winograd tiles", (n, n, r, c, shape.in_channels), dtype)
        products = workspace.take("winograd products", (n, n, r, c, shape.out_channels), dtype)
        sums = workspace.take("winograd sums", (2, n, r, c, shape.out_channels), dtype)
        transform(part, list(by_rows), 0, r)
        transform(by_rows, [tiles[:, i] for i in range(n)], 1, c)
        torch.bmm(
            tiles.view(n * n, r * c, shape.in_channels),
            self._weight,
            out=products.view(n * n, r * c, shape.out_channels),
        )
        if self._bias is not None:
            products[1, 1].add_(self._bias)  # the product that enters all four pixels with weight one
        for y in (0, 1):
            _transform_back_one(list(products), sums[y], y)
            row = out[y::2]
            columns = [row[:, x::2] for x in (0, 1)]
            part_sums = sums[y, :, : row.shape[0]]
            for x in (0, 1):
                _transform_back_one([p[:, : columns[x].shape[1]] for p in part_sums], columns[x], x)


def _subpixel_weight(weight: Tensor, planar: bool) -> Tensor:
    """(O, I, 3, 3) -> (2, 2 * O, I, 2, 2): the taps that fall on the same small pixel added up, in float32.

    The first axis is the output row's parity, the first half of the second axis the even output columns.
    """
    out, channels = weight.shape[:2]
    if planar:
        result = weight.new_empty(2, 2 * out, channels, 2, 2)
    else:
        result = weight.new_empty(2, 2 * out, 2, 2, channels).permute(0, 1, 4, 2, 3)
    taps = (
        (slice(0, 1), slice(1, 3)),
        (slice(0, 2), slice(2, 3)),
    )  # kernel rows on each small row, by parity
    for y in (0, 1):
        for x in (0, 1):
            for i in (0, 1):
                for j in (0, 1):
                    rows, columns = taps[y][i], taps[x][j]
                    result[y, x * out : (x + 1) * out, :, i, j] = weight[:, :, rows, columns].sum(
                        (2, 3), dtype=torch.float32
                    )
    return result


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
    elif len(m) == 4:
        torch.sub(m[1], m[2], out=out)
        out.sub_(m[3])
    else:
        torch.sub(m[1], m[2], out=out)


def best_shape(
    in_channels: int, out_channels: int, scale: str, pixels: int, device: torch.device, dtype: torch.dtype
) -> ConvShape:
    """The algorithm that is fastest for this convolution on this device."""
    worth_it = min(in_channels, out_channels) >= 64 and pixels >= 2048 and scale != "down"
    algorithm = "direct"
    if device.type == "cpu" and dtype == torch.float32:
        algorithm = "winograd" if worth_it else "planar" if in_channels >= 64 else "direct"
    return ConvShape(in_channels, out_channels, scale, algorithm)


class Linear:
    """A 1x1 convolution, as a matrix product on (rows, columns, channels)."""

    def __init__(self, module: nn.Conv2d, device: torch.device, dtype: torch.dtype) -> None:
        self._weight = module.weight.detach().flatten(1).to(device, dtype)
        bias = module.bias
        self._bias = (
            self._weight.new_zeros(self._weight.shape[0]) if bias is None else bias.detach().to(device, dtype)
        )

    @property
    def out_channels(self) -> int:
        return self._weight.shape[0]

    def into(self, out: Tensor, rows: Tensor) -> None:
        """``out``, (rows, columns, out channels), becomes the result; both contiguous."""
        torch.addmm(self._bias, rows.flatten(0, 1), self._weight.T, out=out.flatten(0, 1))

    def __call__(self, rows: Tensor) -> Tensor:
        out = rows.new_empty(*rows.shape[:2], self.out_channels)
        self.into(out, rows)
        return out

    @staticmethod
    def weight_bytes(in_channels: int, out_channels: int, dtype: torch.dtype, resident: bool) -> int:
        """Bytes of the copy that is made of the weights; none if they are ``resident`` in device and dtype."""
        return 0 if resident else (in_channels + 1) * out_channels * dtype.itemsize
