"""Each algorithm against PyTorch's convolution in float64, whole and through padded windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.networks.small import BF16, CPU, FP32, distance
from vae_lib.device import PeakMemory
from vae_lib.engine import Compute, Edge, Padding
from vae_lib.engine.buffers import Memory, Workspace
from vae_lib.engine.convolution import WINOGRAD_TILES, Convolution, ConvShape, best_shape
from vae_lib.engine.linear import Linear, tokens
from vae_lib.planning.cost import CountedMemory


def reference(conv: nn.Conv2d, rows: Tensor, scale: str) -> Tensor:
    """(height, width, channels) through the plain layers, in float64."""
    x = rows.double().permute(2, 0, 1)[None]
    weight, bias = conv.weight.double(), None if conv.bias is None else conv.bias.double()
    if scale == "up":
        x = F.interpolate(x, scale_factor=2.0)
    out = F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2) if scale == "down" else F.conv2d(x, weight, bias, 1, 1)
    return out[0].permute(1, 2, 0)


def convolve(shape: ConvShape, conv: nn.Conv2d, rows: Tensor, first: int, last: int) -> Tensor:
    """Output rows first..last-1 by way of a padded window, as a pass does it; (rows, columns, channels)."""
    height, width, _ = rows.shape
    first, last = shape.output_rows(first, last)
    low, high = shape.input_rows(first, last)
    window = channels_last(torch.zeros(1, *shape.window(last - first, width), dtype=rows.dtype))
    for row in range(max(low, 0), min(high, height)):
        window[0, :, row - low, shape.left_padding : shape.left_padding + width] = rows[row].T
    memory = Memory(CPU, rows.dtype)
    result = Convolution(shape, conv, memory)(window, last - first, width, Workspace(memory))
    assert result.is_contiguous(memory_format=torch.channels_last)
    return result[0].permute(1, 2, 0)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def conv_of(channels: tuple[int, int], bias: bool = True, dtype: torch.dtype = FP32) -> nn.Conv2d:
    return nn.Conv2d(*channels, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)


@given(
    scale_algorithm=st.sampled_from(
        [
            (scale, algorithm, pads)
            for scale in ("same", "up", "down")
            for algorithm in ("direct", "planar", "winograd")
            for pads in (False, True)
            if (scale, algorithm) != ("down", "winograd") and not (pads and "winograd" in algorithm)
            if not (pads and scale == "down")
        ]
    ),
    size=st.tuples(st.integers(2, 13), st.integers(2, 13)),
    channels=st.sampled_from([(3, 5), (8, 4), (1, 2)]),
    bias=st.booleans(),
    data=st.data(),
)
def test_algorithms_agree(
    scale_algorithm: tuple[str, str, bool],
    size: tuple[int, int],
    channels: tuple[int, int],
    bias: bool,
    data: st.DataObject,
) -> None:
    scale, algorithm, pads = scale_algorithm
    shape = ConvShape(*channels, scale, algorithm, pads)
    height, width = shape.output_size(*size)
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first + 1, height))
    rows, conv = torch.randn(*size, channels[0]), conv_of(channels, bias)
    wanted = reference(conv, rows, scale)
    assert wanted.shape == (height, width, channels[1])
    start, end = shape.output_rows(first, last)
    assert start <= first < last <= end
    assert distance(convolve(shape, conv, rows, first, last), wanted[start:end]) < 2e-6


@pytest.mark.parametrize("scale", ["same", "up"])
def test_winograd_in_several_chunks(scale: str) -> None:
    """Wider than one chunk of tiles, and higher."""
    shape, conv = ConvShape(2, 3, scale, "winograd"), conv_of((2, 3))
    for size in ((3, 2 * WINOGRAD_TILES + 7), (61, 67)):
        rows = torch.randn(*size, 2)
        wanted = reference(conv, rows, scale)
        assert distance(convolve(shape, conv, rows, 0, wanted.shape[0]), wanted) < 2e-6


def test_winograd_is_no_less_exact_than_direct() -> None:
    conv, rows = conv_of((64, 64)), torch.randn(20, 22, 64)
    wanted = reference(conv, rows, "same")
    errors = [
        float((convolve(ConvShape(64, 64, "same", name), conv, rows, 0, 20) - wanted).square().mean())
        for name in ("winograd", "direct")
    ]
    assert errors[0] < 2 * errors[1]


def test_half_precision_subpixel_sums_in_float32() -> None:
    """Within a rounding or two of bfloat16 (8 bits) of the exact result."""
    conv, rows = conv_of((16, 16), dtype=BF16), torch.randn(5, 6, 16).to(BF16)
    assert distance(convolve(ConvShape(16, 16, "up"), conv, rows, 0, 10), reference(conv, rows, "up")) < 2**-6


@pytest.mark.parametrize("algorithm", ["direct", "planar"])
def test_half_precision_subpixel_errors_cancel_where_neighbours_are_alike(algorithm: str) -> None:
    """As in most of a picture. Sums rounded each for itself err 1.5 times as much as rounding the result must."""
    torch.manual_seed(3)
    conv = conv_of((64, 64), dtype=BF16)
    rows = torch.randn(64).expand(12, 14, 64).to(BF16)
    exact = reference(conv, rows, "up")
    made = convolve(ConvShape(64, 64, "up", algorithm), conv, rows, 0, 24)
    ours, least = (float((x.double() - exact).square().mean().sqrt()) for x in (made, exact.to(BF16)))
    assert ours < 1.2 * least


@pytest.mark.parametrize("scale", ["same", "up"])
@pytest.mark.parametrize("algorithm", ["direct", "planar"])
@pytest.mark.parametrize("apart", [False, True])
def test_the_whole_picture_is_its_own_window(scale: str, algorithm: str, apart: bool) -> None:
    """And a bias that is left to the next norm is not in the result."""
    rows, conv, memory = torch.randn(7, 5, 8), conv_of((8, 4)), Memory(CPU, FP32)
    layer = Convolution(ConvShape(8, 4, scale, algorithm, True), conv, memory, apart)
    wanted = reference(conv, rows, scale)
    picture = channels_last(rows.permute(2, 0, 1)[None])
    result = layer(picture, wanted.shape[0], 5, Workspace(memory), whole=True)[0].permute(1, 2, 0)
    assert (layer.offset is not None) is apart
    assert distance(result if layer.offset is None else result + layer.offset, wanted) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("scale", ["same", "up", "down"])
@pytest.mark.parametrize("algorithm", ["direct", "planar", "winograd"])
def test_the_counted_twin_takes_the_same_memory(scale: str, algorithm: str, dtype: torch.dtype, resident: bool) -> None:
    """While weights are prepared, while it convolves, and for what is kept: to the byte."""
    if (scale, algorithm) == ("down", "winograd"):
        pytest.skip("there is no such way")
    shape = ConvShape(48, 40, scale, algorithm)
    conv, twin = (
        conv_of((48, 40), dtype=dtype if resident else torch.float64),
        CountedMemory(CPU, dtype, resident),
    )
    memory: Memory = Memory(CPU, dtype)
    with PeakMemory(CPU) as peak:
        prepared = Convolution(shape, conv, memory)
    counted = Convolution(shape, conv, twin)
    assert twin.meter.peak == peak.bytes
    own = [t for t in vars(prepared).values() if isinstance(t, Tensor) and t.data_ptr() not in _pointers(conv)]
    assert twin.meter.live == sum(t.nbytes for t in own)
    for rows, width in ((40, 64), (26, 600)):
        twin.meter.peak = before = twin.meter.live
        window = torch.zeros(1, *shape.window(rows, width), dtype=dtype)
        window = channels_last(window)
        with PeakMemory(CPU) as peak:
            prepared(window, rows, width, Workspace(memory))
        counted(twin.given(1, *shape.window(rows, width)), rows, width, Workspace(twin))  # type: ignore[arg-type]
        assert twin.meter.peak - before == peak.bytes


def _pointers(conv: nn.Conv2d) -> set[int]:
    return {parameter.data_ptr() for parameter in conv.parameters()}


def test_best_shape() -> None:
    """On CPUs in float32 Winograd for wide layers, else planes; channels last everywhere else and for few channels."""
    assert best_shape(64, 64, "same", 4096, Compute(CPU, FP32)).algorithm == "winograd"
    assert best_shape(64, 64, "up", 4096, Compute(CPU, FP32)).algorithm == "winograd"
    for arguments in (
        (64, 64, "down", 4096),
        (64, 3, "same", 4096),
        (64, 64, "same", 100),
        (64, 64, "up", 100),
    ):
        assert best_shape(*arguments, Compute(CPU, FP32)).algorithm == "planar"
    assert best_shape(4, 64, "same", 4096, Compute(CPU, FP32)).algorithm == "direct"
    assert best_shape(64, 64, "same", 4096, Compute(CPU, BF16)).algorithm == "direct"
    assert best_shape(64, 64, "same", 4096, Compute(torch.device("cuda"), FP32)).algorithm == "direct"


def test_the_kernel_pads_the_columns_where_it_can() -> None:
    cuda = torch.device("cuda")
    assert best_shape(64, 64, "same", 4096, Compute(cuda, FP32)).pads
    assert not best_shape(64, 64, "same", 4096, Compute(cuda, FP32, Padding.of(True))).pads
    assert best_shape(64, 64, "same", 4096, Compute(cuda, FP32, Padding(height=Edge.REFLECT))).pads
    assert not best_shape(64, 64, "down", 4096, Compute(cuda, FP32)).pads
    assert not best_shape(64, 64, "same", 4096, Compute(CPU, FP32)).pads


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_linear(bias: bool, given: bool) -> None:
    conv, rows = nn.Conv2d(6, 4, 1, bias=bias).requires_grad_(False), channels_last(torch.randn(1, 6, 3, 5))
    offset, memory = torch.randn(6) if given else None, Memory(CPU, FP32)
    linear = Linear(conv, memory, offset)
    assert (linear.offset is not None) is given
    out = memory.empty(4, 3, 5)
    linear.into(out, rows)
    wanted = conv(rows if offset is None else rows + offset.view(1, -1, 1, 1))
    pixels = linear(tokens(rows)).view(1, 3, 5, 4).permute(0, 3, 1, 2)
    for result in (out, pixels):
        whole = result if linear.offset is None else result + linear.offset.view(1, -1, 1, 1)
        assert distance(whole, wanted) < 1e-6
