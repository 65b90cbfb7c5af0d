"""Each algorithm against PyTorch's convolution in float64, whole and through padded windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.decode.helpers import BF16, CPU, FP32, distance
from vae_lib.decode import PeakMemory
from vae_lib.decode.buffers import Workspace
from vae_lib.decode.convolution import WINOGRAD_TILES, Convolution, ConvShape, Linear, best_shape


def reference(conv: nn.Conv2d, rows: Tensor, scale: str) -> Tensor:
    """(height, width, channels) through the plain layers, in float64."""
    x = rows.double().permute(2, 0, 1)[None]
    weight, bias = conv.weight.double(), None if conv.bias is None else conv.bias.double()
    if scale == "up":
        x = F.interpolate(x, scale_factor=2.0)
    out = (
        F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)
        if scale == "down"
        else F.conv2d(x, weight, bias, 1, 1)
    )
    return out[0].permute(1, 2, 0)


def convolve(shape: ConvShape, conv: nn.Conv2d, rows: Tensor, first: int, last: int) -> Tensor:
    """Output rows first..last-1 by way of a padded window, as a pass does it."""
    height, width, _ = rows.shape
    first, last = shape.output_rows(first, last)
    low, high = shape.input_rows(first, last)
    window = torch.zeros(shape.window(last - first, width), dtype=rows.dtype)
    for row in range(max(low, 0), min(high, height)):
        window[row - low, shape.left_padding : shape.left_padding + width] = rows[row]
    return Convolution(shape, conv, CPU, rows.dtype)(window, last - first, width, Workspace(CPU))


def conv_of(channels: tuple[int, int], bias: bool = True, dtype: torch.dtype = FP32) -> nn.Conv2d:
    return nn.Conv2d(*channels, 3, padding=1, bias=bias).to(dtype).requires_grad_(False)


@given(
    scale_algorithm=st.sampled_from(
        [
            (scale, algorithm)
            for scale in ("same", "up", "down")
            for algorithm in ("direct", "planar", "winograd")
            if (scale, algorithm) != ("down", "winograd")
        ]
    ),
    size=st.tuples(st.integers(2, 13), st.integers(2, 13)),
    channels=st.sampled_from([(3, 5), (8, 4), (1, 2)]),
    bias=st.booleans(),
    data=st.data(),
)
def test_algorithms_agree(
    scale_algorithm: tuple[str, str],
    size: tuple[int, int],
    channels: tuple[int, int],
    bias: bool,
    data: st.DataObject,
) -> None:
    scale, algorithm = scale_algorithm
    shape = ConvShape(*channels, scale, algorithm)
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


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    "algorithm",
    [
        "same/direct",
        "same/planar",
        "same/winograd",
        "up/direct",
        "up/planar",
        "up/winograd",
        "down/direct",
        "down/planar",
    ],
)
def test_memory_of_prepared_weights(algorithm: str, dtype: torch.dtype, resident: bool) -> None:
    shape = ConvShape(48, 40, *algorithm.split("/"))
    conv = conv_of((48, 40), dtype=dtype if resident else torch.float64)
    with PeakMemory(CPU) as peak:
        prepared = Convolution(shape, conv, CPU, dtype)
    kept, most = shape.weight_bytes(dtype, resident)
    assert (
        peak.bytes <= most <= 1.03 * peak.bytes + 4 * 48 * 40
    )  # where a sum's float32 result is short-lived
    own = [
        t for t in vars(prepared).values() if isinstance(t, Tensor) and t.data_ptr() not in _pointers(conv)
    ]
    assert sum(t.nbytes for t in own) == kept


def _pointers(conv: nn.Conv2d) -> set[int]:
    return {parameter.data_ptr() for parameter in conv.parameters()}


@given(
    scale=st.sampled_from(["same", "up"]),
    rows=st.integers(1, 40).map(lambda n: 2 * n),
    width=st.integers(1, 700),
)
def test_workspace_is_what_winograd_takes(scale: str, rows: int, width: int) -> None:
    shape, workspace = ConvShape(2, 1, scale, "winograd"), Workspace(CPU)
    conv = Convolution(shape, conv_of((2, 1)), CPU, FP32)
    conv(torch.zeros(shape.window(rows, width)), rows, width, workspace)
    taken = {name: buffer.numel() for (name, _), buffer in workspace._buffers.items()}
    assert taken == shape.workspace(rows, width)


def test_best_shape() -> None:
    """On CPUs in float32 Winograd for wide layers, else planes; channels last everywhere else and for few channels."""
    assert best_shape(64, 64, "same", 4096, CPU, FP32).algorithm == "winograd"
    assert best_shape(64, 64, "up", 4096, CPU, FP32).algorithm == "winograd"
    for arguments in (
        (64, 64, "down", 4096),
        (64, 3, "same", 4096),
        (64, 64, "same", 100),
        (64, 64, "up", 100),
    ):
        assert best_shape(*arguments, CPU, FP32).algorithm == "planar"
    assert best_shape(4, 64, "same", 4096, CPU, FP32).algorithm == "direct"
    assert best_shape(64, 64, "same", 4096, CPU, BF16).algorithm == "direct"
    assert best_shape(64, 64, "same", 4096, torch.device("cuda"), FP32).algorithm == "direct"


@pytest.mark.parametrize("scale", ["same", "up", "down"])
@pytest.mark.parametrize("algorithm", ["direct", "planar"])
def test_transient_bytes(scale: str, algorithm: str) -> None:
    """What a convolution allocates beside its result is never more than what the planner is told, nor much less."""
    shape = ConvShape(24, 16, scale, algorithm)
    conv, window = Convolution(shape, conv_of((24, 16)), CPU, FP32), torch.zeros(shape.window(40, 64))
    with PeakMemory(CPU) as peak:
        result = conv(window, 40, 64, Workspace(CPU))
    allowed = result.nbytes + shape.transient_bytes(40, 64, FP32)
    assert 0.9 * allowed <= peak.bytes <= allowed


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    conv, rows = nn.Conv2d(6, 4, 1, bias=bias).requires_grad_(False), torch.randn(3, 5, 6)
    wanted = conv(rows.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    linear = Linear(conv, CPU, FP32)
    assert distance(linear(rows), wanted) < 1e-6
    assert Linear.weight_bytes(6, 4, BF16, resident=False) == 7 * 4 * 2
    assert Linear.weight_bytes(6, 4, BF16, resident=True) == 0
