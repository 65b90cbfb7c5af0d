"""Predicted peaks against what is really allocated: never below, at most a tenth above."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decode.test_ladder import outcome_of
from tests.networks.small import (
    BF16,
    CPU,
    FP16,
    FP32,
    PADDINGS,
    QWEN21,
    SD,
    SMALL,
    WAN,
    WAN22,
    images,
    latents_for,
    measured_peak,
    network,
    sd3_like,
    taesd,
)
from tests.planning.plans import candidates, choose, planner
from vae_lib.decode import Ladder
from vae_lib.device import PeakMemory
from vae_lib.engine import Edge, Padding, Tiling
from vae_lib.engine.padding import ZEROS
from vae_lib.networks import WanConfig
from vae_lib.planning import Route, Work, cost
from vae_lib.planning.plan import cost_of

ROOM = 1.10


def check(work: Work, tiling: Tiling) -> None:
    assert work.config is not None
    weights = network(work.config, work.dtype if work.resident else FP32)
    measured = measured_peak(work, weights, tiling, work.picture)
    assert measured <= cost_of(work, tiling).peak_bytes <= ROOM * measured


def half_convolves(dtype: torch.dtype) -> bool:
    """PyTorch 2.1 has no float16 convolution on CPUs."""
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3, dtype=dtype), torch.ones(1, 1, 3, 3, dtype=dtype))
    except RuntimeError:
        return False
    return True


TILINGS = {
    "full": Tiling(1 << 24),
    "bands": Tiling(1 << 15, attention_bytes=1 << 20),
    "recompute": Tiling(1 << 14, 1, attention_bytes=1 << 16),
    "recompute all": Tiling(1 << 18, 2),
    "offload": Tiling(1 << 15, offload=True, attention_bytes=1 << 20),
}
SIZES = [(8, 8), (5, 7), (16, 12), (2, 64), (64, 2), (24, 24)]


@pytest.mark.slow
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_sizes(size: tuple[int, int], tiling: Tiling) -> None:
    for operation in ("decode", "encode"):
        check(Work(SMALL, operation, *size, 1, CPU, FP32), tiling)


@pytest.mark.slow
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=str)
def test_dtypes_batches_and_weights_of_another_dtype(dtype: torch.dtype, tiling: Tiling) -> None:
    if not half_convolves(dtype):
        pytest.skip(f"no convolution in {dtype} here")
    for operation in ("decode", "encode"):
        for batch, resident in ((3, True), (1, False)):
            if resident or dtype != FP32:
                check(Work(SMALL, operation, 6, 5, batch, CPU, dtype, resident=resident), tiling)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    config=st.sampled_from([SMALL, sd3_like(ch=64, ch_mult=(1, 2), num_res_blocks=1)]),
    operation=st.sampled_from(["decode", "encode"]),
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    extra=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    batch=st.integers(1, 2),
    padding=st.sampled_from(PADDINGS),
    tiling=st.builds(
        Tiling,
        st.integers(11, 22).map(lambda power: 1 << power),
        st.integers(0, 2),
        st.booleans(),
        st.sampled_from([1 << 14, 1 << 18, 32 << 20]),
    ),
)
def test_any_work(
    config: object,
    operation: str,
    size: tuple[int, int],
    extra: tuple[int, int],
    batch: int,
    padding: Padding,
    tiling: Tiling,
) -> None:
    picture = None
    if operation == "encode":  # odd pictures
        picture = (2 * size[0] + extra[0], 2 * size[1] + extra[1])
    check(Work(config, operation, *size, batch, CPU, FP32, padding=padding, picture=picture), tiling)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    device=st.sampled_from([CPU, torch.device("cuda")]),
    operation=st.sampled_from(["decode", "encode"]),
    size=st.tuples(st.integers(20, 200), st.integers(4, 20)),
    padding=st.sampled_from(PADDINGS),
    tiling=st.builds(Tiling, st.integers(11, 18).map(lambda power: 1 << power), st.integers(0, 2), st.booleans()),
)
def test_counting_many_bands_by_one_changes_nothing(
    device: torch.device, operation: str, size: tuple[int, int], padding: Padding, tiling: Tiling
) -> None:
    work = Work(SMALL, operation, *size, 1, device, FP32, padding=padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_sampled", lambda todo, *_: ((index, 1) for index in range(len(todo))))
        one_by_one = cost_of.__wrapped__(work, tiling)
    assert cost_of.__wrapped__(work, tiling) == one_by_one


WIDE_WAN = WanConfig((64, 66), 1, 2)


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("operation", ["decode", "encode"])
def test_a_stream(operation: str, tiling: Tiling) -> None:
    check(Work(WAN, operation, 5, 7, 2, CPU, FP32), tiling)
    check(Work(WIDE_WAN, operation, 17, 35, 1, CPU, FP32), tiling)


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("config", [WAN22, QWEN21], ids=["Wan 2.2", "Qwen-Image 2.1"])
def test_a_stream_with_shortcuts_around_levels(config: WanConfig, operation: str, tiling: Tiling) -> None:
    check(Work(config, operation, 5, 7, 2, CPU, FP32), tiling)


@pytest.mark.slow
@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("operation", ["decode", "encode"])
def test_a_stream_in_other_dtypes_and_with_other_padding(operation: str, tiling: Tiling) -> None:
    for config in (WAN, WIDE_WAN):
        for padding in (ZEROS, Padding(Edge.CIRCULAR, Edge.REFLECT)):
            check(Work(config, operation, 24, 4, 1, CPU, FP32, padding=padding), tiling)
        for resident in (True, False):
            check(Work(config, operation, 6, 5, 1, CPU, BF16, resident=resident), tiling)
    work = Work(WAN, operation, 6, 5, 1, CPU, FP32, picture=(51, 47) if operation == "encode" else None)
    check(work, tiling)


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("config", [WAN, WAN22], ids=["2.1", "2.2"])
def test_counting_many_bands_of_a_stream_by_one_changes_nothing(config: WanConfig, operation: str) -> None:
    work = Work(config, operation, 90, 6, 1, torch.device("cuda"), FP32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_sampled", lambda todo, *_: ((index, 1) for index in range(len(todo))))
        one_by_one = cost_of.__wrapped__(work, Tiling(1 << 11))
    assert cost_of.__wrapped__(work, Tiling(1 << 11)) == one_by_one


VIDEOS = [replace(WAN, times=(1, 2, 2), num_res_blocks=1), replace(WAN22, times=(1, 2, 2))]
videos = pytest.mark.parametrize("config", VIDEOS, ids=["2.1", "2.2"])


@pytest.mark.parametrize(("tiling", "frames"), [(TILINGS["bands"], 3), (TILINGS["offload"], 2)], ids=str)
@pytest.mark.parametrize("operation", ["decode", "encode"])
@videos
def test_a_video(config: WanConfig, operation: str, tiling: Tiling, frames: int) -> None:
    """``batch`` is of latents or of frames."""
    check(Work(config, operation, 4, 3, 4 * frames - 3 if operation == "encode" else frames, CPU, FP32), tiling)


def test_a_video_by_winograds_algorithm() -> None:
    """Each frame of a video reads and multiplies what a picture does, three times at most."""
    picture = Work(WIDE_WAN, "decode", 17, 35, 1, CPU, FP32)
    video = replace(picture, config=replace(WIDE_WAN, times=(1,)), batch=3)
    check(video, TILINGS["bands"])
    one, three = (cost_of(work, TILINGS["bands"]) for work in (picture, video))
    assert 3 * one.moved_bytes < three.moved_bytes < 9 * one.moved_bytes
    assert 3 * one.multiplications < three.multiplications < 9 * one.multiplications


@pytest.mark.parametrize("operation", ["decode", "encode"])
@videos
def test_counting_many_frames_by_one_changes_nothing(config: WanConfig, operation: str) -> None:
    frames = 17 if operation == "encode" else 5
    for tiling in (Tiling(1 << 12), Tiling(1 << 12, offload=True), Tiling(1 << 40)):
        work = Work(config, operation, 12, 4, frames, torch.device("cuda"), FP32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cost.CountedMemory, "frames", lambda self, count, period: ((at, 1) for at in range(count)))
            one_by_one = cost_of.__wrapped__(work, tiling)
        counted = cost_of.__wrapped__(work, tiling)
        assert replace(counted, peak_bytes=0) == replace(one_by_one, peak_bytes=0)
        # frames that one stands for change hands with it, and not one after the other
        assert counted.peak_bytes == pytest.approx(one_by_one.peak_bytes, rel=0.005)


@videos
def test_a_video_takes_more_for_each_frame_and_a_higher_one_for_its_middle(config: WanConfig) -> None:
    """What is kept of each frame are a few rows; and each row more of latents is a row of the middle's maps."""

    def peak(height: int, frames: int) -> int:
        work = Work(config, "decode", height, 8, frames, torch.device("cuda"), FP32, output_on_device=False)
        return cost_of(work, Tiling(1 << 10)).peak_bytes

    middle = 8 * config.decoder_widths[-1] * 4  # bytes of a row
    assert peak(60, 3) - peak(30, 3) <= 30 * 8 * middle
    assert peak(60, 4) - peak(60, 3) <= 60 * middle + (peak(30, 4) - peak(30, 3))


@pytest.mark.slow
def test_four_levels_and_winograd() -> None:
    check(Work(SD, "decode", 9, 11, 1, CPU, FP32), Tiling(1 << 16))
    wide = sd3_like(ch=64, ch_mult=(1, 1), num_res_blocks=1)
    for recompute in range(3):
        check(Work(wide, "decode", 33, 35, 1, CPU, FP32), Tiling(1 << 18, recompute))


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("route", [Route.FULL, Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD])
def test_every_route_through_the_ladder(route: Route, operation: str) -> None:
    """At its largest plan and its smallest, input checks and all."""
    net, tiny = network(), taesd()
    for padding in (ZEROS, Padding(Edge.CIRCULAR, Edge.REFLECT)):
        ladder = Ladder(net, tiny, order=(route,), wrap=padding)
        height, width = (10, 9) if route is Route.TAESD else (24, 20)
        work = ladder.work(operation, height, width, 2)
        peaks = [plan.peak_bytes for plan in candidates(work, route)]
        for budget in {max(peaks), min(peaks)}:
            ladder.planner = planner(budget)
            source = latents_for(SMALL, height, width, 2) if operation == "decode" else images(*work.pixels, 2)
            if route is Route.TAESD and operation == "encode":
                ladder.vae, work = None, Ladder(None, tiny, wrap=padding).work(operation, height, width, 1)
                source = images(height * 8, width * 8)
                ladder.planner = planner(1 << 40)
            with PeakMemory(CPU) as measured:
                outcome = outcome_of(ladder, operation, source)
            assert outcome.plan.route is route
            assert measured.bytes <= outcome.plan.peak_bytes <= ROOM * measured.bytes


@pytest.mark.parametrize(
    ("padding", "dtype"), [(ZEROS, FP32), (ZEROS, BF16), (Padding.of(Edge.REFLECT), FP32)], ids=str
)
def test_the_taesd_of_a_video_model(padding: Padding, dtype: torch.dtype) -> None:
    """Of all plans the memory is predicted, and the work in proportion to that of a TAESD of pictures."""
    ladder = Ladder(None, taesd(16, video=True), order=(Route.TAESD,), wrap=padding, dtype=dtype)
    work = ladder.work("decode", 12, 12, 1)
    plans = candidates(work, Route.TAESD)
    assert plans == candidates(replace(work, config=WAN, video=False), Route.TAESD)
    pictures = candidates(replace(work, video=False), Route.TAESD)
    assert 1.5 < plans[0].seconds / pictures[0].seconds < 1.8
    assert plans[0].peak_bytes < pictures[0].peak_bytes
    for plan in (plans[0], plans[-1]):
        ladder.planner = planner(plan.peak_bytes)
        with PeakMemory(CPU) as measured:
            outcome = ladder.decode(None, latents_for(WanConfig(), 12, 12))
        assert measured.bytes <= outcome.plan.peak_bytes <= ROOM * measured.bytes
    assert candidates(replace(work, operation="encode"), Route.TAESD) == []


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.35])
def test_what_is_chosen_for_a_budget_keeps_to_it(share: float) -> None:
    work = Work(SMALL, "decode", 24, 24, 1, CPU, FP32)
    full = choose(work, 1 << 40).peak_bytes
    plan = choose(work, int(full * share))
    assert plan.tiling is not None
    assert measured_peak(work, network(), plan.tiling) <= plan.peak_bytes <= full * share


def test_work_grows_with_the_picture() -> None:
    small, large = (cost_of(Work(SMALL, "decode", n, n, 1, CPU, FP32), Tiling(1 << 16)) for n in (8, 16))
    assert large.multiplications > 3.9 * small.multiplications
    assert large.moved_bytes > 3 * small.moved_bytes
    assert small.transferred_bytes == 0
    offloaded = cost_of(Work(SMALL, "decode", 8, 8, 1, CPU, FP32), Tiling(1 << 16, offload=True))
    assert offloaded.transferred_bytes > 0
    batch = cost_of(Work(SMALL, "decode", 8, 8, 3, CPU, FP32), Tiling(1 << 16))
    assert (batch.multiplications, batch.bands) == (3 * small.multiplications, 3 * small.bands)
