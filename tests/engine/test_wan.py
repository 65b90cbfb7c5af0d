"""Wan's VAE in a stream of bands gives the plain network's picture, whatever size, bands and options are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.engine.gpu import as_on_a_gpu
from tests.networks.small import (
    BF16,
    CPU,
    FP32,
    FP64,
    PADDINGS,
    QWEN21,
    WAN,
    WAN22,
    distance,
    images,
    latents_for,
    network,
    padded,
    run_decode,
    run_encode,
)
from vae_lib.device import PeakMemory
from vae_lib.engine import Compute, Edge, Padding, Tiling, decode
from vae_lib.engine.padding import SEAMLESS, ZEROS
from vae_lib.engine.passes import INPUT, MapSize, StreamPass
from vae_lib.engine.programs import of
from vae_lib.errors import Cancelled, CheckpointError, InputError
from vae_lib.networks import WanConfig, WanVAE, assign
from vae_lib.planning.plan import WHOLE

ROWS = Tiling(64, attention_bytes=1 << 10)  # as few rows as there can be in a band
BANDS = Tiling(1 << 14, attention_bytes=1 << 14)
FULL = Tiling(WHOLE)
OFFLOAD = Tiling(1 << 13, offload=True, attention_bytes=1 << 12)
TILINGS = {"rows": ROWS, "bands": BANDS, "full": FULL, "offload": OFFLOAD}
ALLOWED = {FP64: 1e-10, FP32: 1e-5}

FLAT = WanConfig((6,), 1, 3)  # one level
WIDE = WanConfig((64, 66), 1, 2)  # for Winograd's algorithm, of an odd size too

tilings = pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())


def check(
    config: WanConfig, size: tuple[int, int], tiling: Tiling, dtype: torch.dtype, padding: Padding = ZEROS
) -> None:
    """Two pictures, decoded and encoded; those to encode are no multiples of the downscale."""
    vae = network(config, dtype)
    plain = padded(vae, padding)
    assert isinstance(plain, WanVAE)
    z = latents_for(config, *size, batch=2).to(dtype)
    assert distance(run_decode(vae, z, tiling, dtype, padding), plain.decode(z)) < ALLOWED[dtype]
    scale, extra = config.downscale, config.downscale // 2
    height, width = scale * size[0] + extra, scale * size[1] + extra
    picture = images(height, width, batch=2, channels=config.in_channels).to(dtype)
    for result, wanted in zip(
        run_encode(vae, picture, tiling, dtype, padding), plain.encode_moments(picture), strict=True
    ):
        assert distance(result, wanted) < ALLOWED[dtype]


@tilings
@pytest.mark.parametrize("dtype", [FP64, FP32], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (7, 3)], ids=str)
def test_exact(size: tuple[int, int], dtype: torch.dtype, tiling: Tiling) -> None:
    check(WAN, size, tiling, dtype)


@tilings
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (18, 2)], ids=str)
@pytest.mark.parametrize("config", [WAN22, QWEN21], ids=["Wan 2.2", "Qwen-Image 2.1"])
def test_exact_with_shortcuts_around_levels(config: WanConfig, size: tuple[int, int], tiling: Tiling) -> None:
    check(config, size, tiling, FP64)


@tilings
def test_exact_where_pictures_are_higher_than_what_a_stream_looks_ahead(tiling: Tiling) -> None:
    check(replace(WAN, widths=(4, 4, 6), num_res_blocks=1), (40, 2), tiling, FP64)


@pytest.mark.parametrize("config", [FLAT, WIDE, WanConfig((4, 6, 8), 3, 1, 2, 5)], ids=str)
def test_exact_for_other_shapes(config: WanConfig) -> None:
    vae, z = network(config), latents_for(config, 5, 6)
    assert distance(run_decode(vae, z, BANDS), vae.decode(z)) < 1e-5


@pytest.mark.parametrize("bands", [Tiling(1 << 16), Tiling(1 << 18), FULL], ids=str)
def test_exact_by_winograds_algorithm(bands: Tiling) -> None:
    vae, z = network(WIDE), latents_for(WIDE, 33, 35)
    assert distance(run_decode(vae, z, bands), vae.decode(z)) < 1e-5
    picture = images(67, 71)
    assert distance(run_encode(vae, picture, bands)[0], vae.encode_moments(picture)[0]) < 1e-5


@pytest.mark.parametrize("padding", PADDINGS, ids=lambda p: f"{p.height.value}-{p.width.value}")
@pytest.mark.parametrize("config", [replace(WAN, widths=(4, 6, 8), num_res_blocks=1), WAN22], ids=["2.1", "2.2"])
def test_exact_with_any_padding(config: WanConfig, padding: Padding) -> None:
    check(config, (6, 3), ROWS, FP64, padding)


@pytest.mark.slow
@tilings
@pytest.mark.parametrize("padding", PADDINGS, ids=lambda p: f"{p.height.value}-{p.width.value}")
def test_exact_with_any_padding_and_tiling(padding: Padding, tiling: Tiling) -> None:
    check(WAN, (9, 2), tiling, FP64, padding)


def test_a_picture_of_zeros_stays_one() -> None:
    """Where a pixel has no length, nothing is divided by zero."""
    vae = network(WAN, BF16)
    assert torch.isfinite(run_decode(vae, torch.zeros(1, 4, 2, 2), BANDS, BF16)).all()


def test_half_precision_rounds_no_more_than_the_plain_network() -> None:
    exact, vae, z = network(WAN, FP64), network(WAN, BF16), latents_for(WAN, 6, 5)
    wanted = exact.decode(z.double())
    assert distance(run_decode(vae, z, BANDS, BF16), wanted) < 1.1 * distance(vae.decode(z.to(BF16)), wanted)


@tilings
def test_exact_by_a_gpus_kernels(tiling: Tiling) -> None:
    with as_on_a_gpu("cpu"):
        check(WAN, (7, 3), tiling, FP32)
        wanted, z = network(WAN, FP64), latents_for(WAN, 6, 5)
        exact = wanted.decode(z.double())
        rounded = distance(network(WAN, BF16).decode(z.to(BF16)), exact)
        assert distance(run_decode(network(WAN, BF16), z, tiling, BF16), exact) < 1.1 * rounded


def test_parts_of_weights_as_a_host_has_them() -> None:
    """The last taps of 5-D weights, views in which rows do not follow one another, and no convolution beside."""
    config = replace(WAN, widths=(64, 64), has_encoder=False, use_post_quant_conv=False)
    vae = network(config)
    z = latents_for(config, 9, 8)
    wanted = vae.decode(z)
    views = {}
    for name, tensor in vae.state_dict().items():
        whole = torch.zeros(*tensor.shape[:2], 3, *tensor.shape[2:]) if tensor.ndim == 4 else tensor
        if tensor.ndim == 4:
            whole[:, :, -1] = tensor
        views[name] = whole[:, :, -1] if tensor.ndim == 4 and tensor.shape[-1] == 3 else tensor
    borrowed = WanVAE(config).eval().requires_grad_(False)
    assign(borrowed, {name: torch.nn.Parameter(view, requires_grad=False) for name, view in views.items()})
    for tiling in (BANDS, FULL, Tiling(1 << 18)):
        assert distance(run_decode(borrowed, z, tiling), wanted) < 1e-5


def test_weights_of_another_dtype() -> None:
    z = latents_for(WAN, 3, 2)
    wanted = network(WAN, FP64).decode(z.double())
    assert distance(run_decode(network(WAN, FP64), z, BANDS, FP32), wanted) < 1e-5


def test_nothing_to_reflect() -> None:
    with pytest.raises(InputError, match="too narrow"):
        run_decode(network(WAN), latents_for(WAN, 1, 3), BANDS, FP32, Padding.of(Edge.REFLECT))


def test_halves_that_are_not_there() -> None:
    with pytest.raises(CheckpointError, match="only an encoder"):
        run_decode(network(replace(WAN, has_decoder=False)), latents_for(WAN, 1, 1), BANDS)
    with pytest.raises(CheckpointError, match="only a decoder"):
        run_encode(network(replace(WAN, has_encoder=False)), images(8, 8), BANDS)


def test_progress_and_stop() -> None:
    seen: list[tuple[int, int]] = []
    compute = Compute(CPU, FP32, progress=lambda done, total: seen.append((done, total)))
    decode(network(WAN), latents_for(WAN, 5, 3, batch=2), ROWS, compute)
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
    stopped = replace(compute, cancelled=lambda: True)
    with pytest.raises(Cancelled):
        decode(network(WAN), latents_for(WAN, 5, 3), ROWS, stopped)


def test_no_row_is_computed_twice() -> None:
    """Of what is behind the attention, all bands together take each stage's rows once."""
    vae = network(WAN)
    *_, behind = of(vae).decoder_passes(vae, MapSize(24, 3, 4), ROWS, Compute(CPU, FP32))
    assert isinstance(behind, StreamPass)
    assert behind.source != INPUT
    assert behind.rows == vae.downscale
    assert len({stage.conv for stage in behind.stages}) == len(behind.stages) == 2 + 12 * 2 + 3 + 1


def test_memory_does_not_grow_with_the_height_but_for_the_middle() -> None:
    """What is left are a middle map, its keys and values (1/64 of the picture's pixels), latents and the picture."""
    config = replace(WAN, widths=(32, 32, 16, 8), num_res_blocks=1)
    vae, taken = network(config), []
    for height in (16, 32):
        with PeakMemory(CPU) as peak:
            decode(vae, latents_for(config, height, 4), ROWS, Compute(CPU, FP32))
        taken.append(peak.bytes)
    row = 4 * 4 * (3 * 64 + 5 * 8 + 4)  # of latents, in float32
    assert taken[1] - taken[0] <= 16 * row


def test_seamless_pictures_have_no_seam() -> None:
    vae, z = network(WAN), latents_for(WAN, 4, 4)
    moved = run_decode(vae, z.roll((1, 2), (2, 3)), BANDS, FP32, SEAMLESS)
    assert distance(moved, run_decode(vae, z, BANDS, FP32, SEAMLESS).roll((8, 16), (2, 3))) < 1e-4
