"""The planner chooses the cheapest way that fits, says why, and names the least that would do."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.networks.small import BF16, CPU, FP32, SMALL, WAN, images, latents_for, network
from tests.planning.plans import candidates, choose, smallest
from tests.test_units import in_bytes
from vae_lib.device import PeakMemory, dtype_name
from vae_lib.device.kind import Speeds
from vae_lib.device.memory import FIRST_PROMISE, largest_block
from vae_lib.engine import Compute, Operation, Padding, Tiling, decode
from vae_lib.engine.plain import run as run_plain
from vae_lib.errors import PlanError
from vae_lib.networks import AutoencoderKLConfig
from vae_lib.planning import Profile, Route, Work
from vae_lib.planning.plan import PLAIN_ROOM, WHOLE, cost_of, plain_cost_of
from vae_lib.planning.profile import seconds
from vae_lib.planning.route import DoesNotFit, FreeUnknown
from vae_lib.planning.work import Cost

CUDA = torch.device("cuda")
PLENTY = 1 << 50
SD15 = AutoencoderKLConfig()
BIG = Work(SD15, "decode", 128, 128, 1, CUDA, torch.float16)  # planned, not run
LITTLE = Work(SMALL, "decode", 16, 16, 1, CPU, FP32)


@settings(max_examples=25)
@given(share=st.floats(0.2, 1.2))
def test_the_fastest_that_fits_on_the_device(share: float) -> None:
    exact = (Route.FULL, Route.TILED, Route.OFFLOAD)
    budget = int(choose(LITTLE, PLENTY).peak_bytes * share)
    fitting = [plan for route in exact for plan in candidates(LITTLE, route) if plan.peak_bytes <= budget]
    if not fitting:
        with pytest.raises(PlanError):
            choose(LITTLE, budget, order=exact)
        return
    plan = choose(LITTLE, budget, order=exact)
    assert plan.peak_bytes <= budget
    assert plan.seconds <= 1.02 * min(other.seconds for other in fitting)


@pytest.mark.parametrize(
    "work", [pytest.param(LITTLE, id="small"), pytest.param(BIG, id="SD 1024x1024", marks=pytest.mark.slow)]
)
def test_more_memory_is_never_slower(work: Work) -> None:
    exact = (Route.FULL, Route.TILED, Route.OFFLOAD)
    least = smallest(work, exact)
    assert least is not None
    full = choose(work, PLENTY, order=exact)
    assert full.route is Route.FULL
    steps = 30
    budgets = [least.peak_bytes + (full.peak_bytes - least.peak_bytes) * i // steps for i in range(steps + 1)]
    seconds = [choose(work, budget, order=exact).seconds for budget in budgets]
    assert all(later <= 1.0001 * earlier for earlier, later in itertools.pairwise(seconds))
    assert seconds[-1] == full.seconds


def least_full(work: Work) -> int:
    """Peak of the full decode in its smallest bands."""
    return min(plan.peak_bytes for plan in candidates(work, Route.FULL))


@pytest.mark.slow
def test_order_is_respected() -> None:
    work = replace(BIG, taesd=True)
    full = choose(work, PLENTY)
    assert full.route is Route.FULL
    assert choose(work, PLENTY, order=(Route.TAESD, Route.FULL)).route is Route.TAESD
    assert choose(work, PLENTY, order=(Route.CPU, Route.TILED)).route is Route.CPU
    assert choose(work, PLENTY, order=(Route.OFFLOAD,)).route is Route.OFFLOAD
    banded = choose(work, full.peak_bytes - 1)
    assert (banded.route, full.is_whole, banded.is_whole) == (Route.FULL, True, False)
    assert choose(work, least_full(work) - 1).route in (Route.TILED, Route.OFFLOAD)
    # Under a budget that no exact way on the device meets, the CPU comes before TAESD as the order says.
    least = smallest(work, (Route.TILED, Route.OFFLOAD))
    assert least is not None
    small = least.peak_bytes - 1
    assert choose(work, small).route is Route.CPU or choose(work, small, patience=1e9).route is Route.CPU
    assert choose(work, small, patience=1e9).device == CPU


def test_taesd_only_if_allowed_and_there() -> None:
    tight = 10_000_000
    slow = Speeds(1.0, 1.0, 1.0, 1.0, 1.0)
    everything = tuple(Route)
    assert all(plan.route is not Route.TAESD for plan in [choose(BIG, PLENTY, order=everything, profile=slow)])
    with pytest.raises(PlanError, match="which takes at least"):
        choose(BIG, tight, order=(Route.FULL, Route.TAESD))
    with pytest.raises(PlanError, match="no TAESD"):
        choose(BIG, PLENTY, order=(Route.TAESD,))
    work = replace(BIG, taesd=True)
    assert choose(work, PLENTY, order=(Route.TAESD,)).route is Route.TAESD
    assert choose(work, 300_000_000, order=(Route.FULL, Route.TAESD)).route is Route.TAESD
    assert choose(work, PLENTY, order=(Route.FULL, Route.TILED)).route is Route.FULL


@pytest.mark.slow
def test_an_exact_way_that_takes_ages_gives_way_to_taesd() -> None:
    work = replace(BIG, taesd=True)
    least = smallest(work, (Route.TILED, Route.OFFLOAD))
    assert least is not None
    tight = max(least.peak_bytes - 1, min(p.peak_bytes for p in candidates(work, Route.TAESD)))
    order = (Route.FULL, Route.CPU, Route.TAESD)
    assert choose(work, tight, order=order, patience=0.01).route is Route.TAESD
    assert choose(work, tight, order=order, patience=1e9).route is Route.CPU
    assert choose(work, tight, order=order[:2], patience=0.01).route is Route.CPU


@pytest.mark.parametrize(
    "work", [LITTLE, pytest.param(BIG, marks=pytest.mark.slow), replace(LITTLE, operation="encode")]
)
@pytest.mark.parametrize("order", [(Route.FULL,), (Route.TILED,), (Route.FULL, Route.TILED, Route.OFFLOAD)])
def test_the_least_that_would_do_does(work: Work, order: tuple[Route, ...]) -> None:
    with pytest.raises(PlanError) as error:
        choose(work, 1000, order=order)
    match = re.search(r"^1\.0 kB is not enough for .*which takes at least ([\d.]+ \w+) \(", str(error.value))
    assert match is not None
    plan = choose(work, in_bytes(match[1]), order=order)
    least = smallest(work, order)
    assert least is not None
    assert plan.peak_bytes == least.peak_bytes
    with pytest.raises(PlanError):
        choose(work, least.peak_bytes - 1, order=order)


@pytest.mark.slow
def test_the_cpu_route_has_its_own_budget() -> None:
    order = (Route.CPU,)
    assert choose(BIG, 1000, order=order).device == CPU
    assert choose(BIG, 1000, order=order).dtype == FP32
    with pytest.raises(PlanError):
        choose(BIG, PLENTY, order=order, cpu_free=1000)


@pytest.mark.slow
def test_offloading_needs_main_memory() -> None:
    order = (Route.OFFLOAD, Route.CPU)
    plan = choose(BIG, PLENTY, order=order, cpu_free=PLENTY)
    assert plan.route is Route.OFFLOAD
    assert plan.host_bytes == 1024 * 1024 * 128 * 2  # one activation of the largest size, in half precision
    with pytest.raises(PlanError, match=r"tiled \+ RAM.* would need 269 MB of main memory, of which 100 MB is free"):
        choose(BIG, PLENTY, order=order, cpu_free=10**8)
    assert choose(BIG, PLENTY, order=(*order, Route.TILED), cpu_free=10**8).route is Route.TILED
    on_cpu = choose(LITTLE, PLENTY, order=order)
    assert (on_cpu.route, on_cpu.host_bytes) == (Route.OFFLOAD, 0)  # a scratch file takes none


def test_copies_that_overlap_take_no_time_of_their_own() -> None:
    speeds = Speeds(10.0, 20.0, 5.0, 1.0, 10.0)
    cost = Cost(multiplications=100, moved_bytes=40, transferred_bytes=30, exposed_bytes=10, dispatches=3)
    assert seconds(speeds, cost) == 10 + 2 + 6 + 3
    assert seconds(speeds, cost, overlapping=True) == 10 + 2 + 3 + 2
    assert seconds(speeds, replace(cost, transferred_bytes=110), overlapping=True) == 20 + 2


def test_a_device_apart_waits_for_dispatch_only_where_it_is_the_faster() -> None:
    speeds, cost = Speeds(10.0, 20.0, 5.0, 1.0, 10.0), Cost(multiplications=100, moved_bytes=40, dispatches=3)
    assert seconds(speeds, cost, apart=True) == 12
    assert seconds(speeds, replace(cost, dispatches=30), apart=True) == 30
    assert seconds(speeds, replace(cost, dispatches=30)) == 42


def test_a_faster_device_takes_larger_bands() -> None:
    """The faster it computes, the more it waits for dispatch."""
    work, memory = BIG, least_full(BIG)
    slow, fast = (
        choose(work, memory, profile=Speeds(rate, rate / 10, 1e10, 1e-5, rate), order=(Route.FULL, Route.TILED))
        for rate in (1e12, 1e15)
    )
    assert slow.seconds > 20 * fast.seconds
    costs = [cost_of(work, plan.tiling).dispatches for plan in (slow, fast) if plan.tiling is not None]
    assert costs[1] <= costs[0]


def test_the_plain_network_where_it_was_timed_and_is_faster() -> None:
    usual = Profile.usual(BIG)
    ours = choose(BIG, PLENTY, profile=usual)
    assert not ours.is_plain
    assert not choose(BIG, PLENTY, profile=replace(usual, plain=1.5)).is_plain
    plain = choose(BIG, PLENTY, profile=replace(usual, plain=0.5))
    assert (plain.is_plain, plain.route, plain.describe()) == (True, Route.FULL, "full (plain network)")
    assert plain.peak_bytes > ours.peak_bytes
    faster = replace(usual, plain=0.5)
    assert choose(BIG, plain.peak_bytes - 1, profile=faster) == choose(BIG, plain.peak_bytes - 1, profile=usual)
    for other in (replace(BIG, padding=Padding.of(True)), replace(BIG, resident=False)):
        assert not choose(other, PLENTY, profile=faster).is_plain


@pytest.mark.parametrize("operation", ["decode", "encode"])
@pytest.mark.parametrize("config", [SMALL, WAN], ids=["AutoencoderKL", "WanVAE"])
def test_the_plain_networks_memory(config: Any, operation: str) -> None:
    """As it is on the meta device, in float32 on a CPU: within a tenth."""
    work = Work(config, Operation(operation), 24, 20, 2, CPU, FP32)
    scale = config.downscale
    given = latents_for(config, 24, 20, 2) if operation == "decode" else images(scale * 24, scale * 20, 2)
    with PeakMemory(CPU) as peak:
        run_plain(network(config), work.operation, given, Compute(CPU, FP32))
    assert peak.bytes <= round(PLAIN_ROOM * plain_cost_of(work).peak_bytes) <= 1.3 * peak.bytes


def test_what_offloading_takes_on_the_device_grows_with_the_width_only() -> None:
    def peak(height: int, width: int) -> int:
        work = replace(BIG, height=height, width=width, output_on_device=False)
        return choose(work, PLENTY, order=(Route.OFFLOAD,)).peak_bytes

    assert peak(1024, 128) < 1.02 * peak(128, 128)


def test_offloaded_bands_are_small_enough_for_copies_beside_the_computing() -> None:
    plan = choose(BIG, PLENTY, order=(Route.OFFLOAD,))
    assert plan.band_rows <= 1024 // 8


def test_a_plan_says_why() -> None:
    full = choose(BIG, PLENTY)
    assert (full.describe(), full.free_bytes, full.why) == ("full", PLENTY, ())
    assert "-row bands" in choose(BIG, full.peak_bytes - 1).describe()
    free = least_full(BIG) * 2 // 3
    tiled = choose(BIG, free)
    assert tiled.free_bytes == free
    assert tiled.why == (DoesNotFit(Route.FULL, full.peak_bytes, free),)
    assert f" in {tiled.band_rows}-row bands" in tiled.describe()


def test_weights_that_cannot_do_it() -> None:
    half = AutoencoderKLConfig(ch=32, ch_mult=(1,), num_res_blocks=1, has_encoder=False)
    with pytest.raises(PlanError, match="only a decoder"):
        choose(replace(LITTLE, config=half, operation="encode"), PLENTY)
    half = AutoencoderKLConfig(ch=32, ch_mult=(1,), num_res_blocks=1, has_decoder=False)
    with pytest.raises(PlanError, match="only an encoder"):
        choose(replace(LITTLE, config=half), PLENTY)


def test_weights_elsewhere_cost_memory() -> None:
    here, there = (choose(replace(BIG, resident=resident), PLENTY) for resident in (True, False))
    assert there.peak_bytes > here.peak_bytes


def test_names() -> None:
    assert [dtype_name(dtype) for dtype in (FP32, torch.float16, BF16)] == ["fp32", "fp16", "bf16"]
    assert dtype_name(torch.float64) == "torch.float64"


@pytest.mark.slow
def test_where_free_memory_is_unknown_a_small_promise_is_made_first() -> None:
    plan = choose(BIG, None)
    assert plan.peak_bytes <= FIRST_PROMISE < choose(BIG, PLENTY).peak_bytes
    known = choose(BIG, FIRST_PROMISE)
    assert replace(plan, free_bytes=FIRST_PROMISE, why=known.why) == known
    large = choose(replace(BIG, height=256, width=256), None)
    (why,) = large.why
    assert isinstance(why, FreeUnknown)
    assert large.peak_bytes <= FIRST_PROMISE < why.need_bytes
    assert large.free_bytes is None
    small = replace(BIG, height=32, width=32)
    assert choose(small, None).describe() == "full"  # the fastest keeps the promise
    huge = replace(BIG, height=4096, width=4096)
    least = smallest(huge)
    assert least is not None
    assert least.peak_bytes > FIRST_PROMISE
    order = (Route.FULL, Route.TILED, Route.OFFLOAD)
    assert choose(huge, None, order=order).peak_bytes == least.peak_bytes
    with pytest.raises(PlanError, match="no TAESD"):
        choose(BIG, None, order=(Route.TAESD,))


@pytest.mark.parametrize("kind", ["xpu", "mps", "privateuseone"])
def test_no_array_is_larger_than_the_device_allocates_at_once(kind: str) -> None:
    """At 4096x4096 in fp16 the whole picture's activations are of 8 GiB."""
    work = replace(BIG, height=512, width=512, device=torch.device(kind))
    most = largest_block(work.device)
    assert most is not None
    assert choose(replace(work, device=CUDA), PLENTY).largest_bytes >= 8 << 30
    for route in (Route.FULL, Route.TILED, Route.OFFLOAD):
        plan = choose(work, PLENTY, order=(route,))
        assert plan.largest_bytes <= most
        assert not plan.is_whole


@pytest.mark.slow
def test_a_result_that_is_too_large_at_once_goes_elsewhere() -> None:
    """One array holds the pictures of a batch."""
    work = Work(SD15, "decode", 512, 512, 50, torch.device("xpu"), torch.float16)
    order = (Route.FULL, Route.TILED, Route.OFFLOAD)
    with pytest.raises(PlanError, match="or possible on this device"):
        choose(work, PLENTY, order=order)
    assert choose(replace(work, output_on_device=False), PLENTY, order=order).largest_bytes < 4 << 30
    assert choose(work, PLENTY).route is Route.CPU


class Arrays(TorchDispatchMode):
    """Sizes of the storages that operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        arrays = (item for item in tree_flatten(result)[0] if isinstance(item, torch.Tensor))
        self.sizes += [array.untyped_storage().nbytes() for array in arrays]
        return result


@pytest.mark.parametrize("tiling", [Tiling(WHOLE), Tiling(1 << 14, 1)], ids=["whole", "bands"])
def test_the_largest_array_is_predicted(tiling: Tiling) -> None:
    work = Work(SMALL, "decode", 24, 20, 1, CPU, FP32)
    with Arrays() as arrays:
        decode(network(SMALL), latents_for(SMALL, 24, 20), tiling, Compute(CPU, FP32))
    assert cost_of(work, tiling).largest_bytes == max(arrays.sizes)
