"""On a real CUDA card: memory that really runs out, what a plan really takes, and what half precision costs.

Skipped without one. A card of 8 GB that nobody else uses is enough.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.decode.test_ladder import outcome_of
from tests.networks.small import BF16, FP16, FP32, taesd
from tests.real_gpu import (
    GPU,
    MIB,
    ROUTES,
    SD15,
    crowded,
    error,
    ladder,
    needs_gpu,
    only,
    ours,
    plain,
    plans,
    source,
    vae,
)
from vae_lib.cli import main
from vae_lib.device import PeakMemory, free_memory, transfers
from vae_lib.device.kernels import attention_is_fused
from vae_lib.engine import Compute, Operation
from vae_lib.engine.programs import taesd as tiny
from vae_lib.errors import PlanError
from vae_lib.networks import AutoencoderKL
from vae_lib.planning import PROFILES, Preference, Route, Step, Work
from vae_lib.planning.events import OutOfMemory, Overflow

pytestmark = needs_gpu
OPERATIONS = list(Operation)
DTYPES = [FP16, BF16, FP32]


@pytest.fixture(autouse=True, scope="module")
def _exact_products() -> Iterator[None]:
    """Without TF32, whose products are as coarse as half precision's; and with threads for the CPU's share."""
    before, threads = torch.backends.cudnn.allow_tf32, torch.get_num_threads()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(8)
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.set_num_threads(threads)


# Memory that runs out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("route", ROUTES)
def test_memory_runs_out_on_every_rung(route: Route, operation: Operation) -> None:
    given = source(operation, 512)
    others = tuple(other for other in (Route.TILED, Route.OFFLOAD, Route.CPU) if other is not route)
    guarded = ladder(FP16, Preference((Step((route,)), Step(others))))
    first = getattr(guarded, operation.value)(given)
    wanted = first.result.float()
    allowed = first.plan.peak_bytes // 2
    del first
    with only(allowed):
        outcome = getattr(guarded, operation.value)(given)
    assert outcome.attempts
    assert outcome.attempts[0].plan.route is route
    assert {type(attempt) for attempt in outcome.attempts} == {OutOfMemory}
    exact = plain(operation, given)
    assert error(outcome.result, exact) <= 1.05 * error(wanted, exact)


@pytest.mark.parametrize("share", [0.95, 0.7, 0.5, 0.35, 0.2, 0.05])
def test_however_little_there_is_the_picture_comes(share: float) -> None:
    """Planned with a card that seems to be empty; the CPU takes over in the end."""
    given = source(Operation.DECODE, 512)
    full = plans(Operation.DECODE, 512, Route.FULL, FP16)[0]
    vae(FP16)
    with only(int(share * full.peak_bytes)):
        outcome = ladder(FP16, (*ROUTES, Route.CPU)).decode(given)
    exact = plain(Operation.DECODE, given)
    assert error(outcome.result.to(GPU), exact) <= 1.05 * error(plain(Operation.DECODE, given, FP16), exact)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_free_is_enough(route: Route) -> None:
    """A plan that was chosen for what the driver says is free does not run out."""
    given = source(Operation.DECODE, 512)
    guarded = ladder(FP16, (route,))
    guarded.decode(given)  # kernels are loaded, which takes memory of the driver's
    for plan in (plans(Operation.DECODE, 512, route, FP16)[0], plans(Operation.DECODE, 512, route, FP16)[-1]):
        with crowded(plan.peak_bytes + 16 * MIB):
            outcome = guarded.decode(given)
        assert outcome.attempts == ()


def test_taesd_that_runs_out_is_cut_into_tiles() -> None:
    given = source(Operation.DECODE, 1024, FP16)
    guarded = ladder(FP16, (Route.TAESD,), taesd=taesd())
    wanted = outcome_of(guarded, Operation.DECODE, given)
    with only(wanted.plan.peak_bytes // 2):
        order = Preference((Step((Route.TAESD,)), Step((Route.OFFLOAD,))))
        outcome = outcome_of(ladder(FP16, order, taesd=taesd()), Operation.DECODE, given)
    assert outcome.plan.route is Route.OFFLOAD
    with crowded(wanted.plan.peak_bytes // 2):
        outcome = outcome_of(guarded, Operation.DECODE, given)
    assert outcome.plan.bands > 1
    assert error(outcome.result, wanted.result.float()) < 1e-3


def test_when_all_fails_everything_is_given_back() -> None:
    given = source(Operation.DECODE, 512, FP16)
    vae(FP16)
    before = torch.cuda.memory_allocated(GPU)
    with only(1 * MIB), pytest.raises(PlanError, match="out of memory"):
        ladder(FP16, ROUTES).decode(given)
    assert torch.cuda.memory_allocated(GPU) == before


def test_memory_that_garbage_holds_is_had_by_the_same_plan() -> None:
    given = source(Operation.DECODE, 512, FP16)
    full = plans(Operation.DECODE, 512, Route.FULL, FP16)[0]
    allowed = full.peak_bytes + 64 * MIB
    with only(allowed):
        gc.disable()
        try:
            circle: list[object] = [torch.empty(allowed - 32 * MIB, dtype=torch.uint8, device=GPU)]
            circle.append(circle)
            del circle
            outcome = ladder(FP16, ROUTES).decode(given)
        finally:
            gc.enable()
    assert (outcome.plan.route, outcome.attempts) == (Route.FULL, ())


def test_memory_in_pieces() -> None:
    """The cache is full of pieces that nobody uses: the plan is the same. Between pieces in use: a smaller one."""
    given = source(Operation.DECODE, 512, FP16)
    full = plans(Operation.DECODE, 512, Route.FULL, FP16)[0]
    wanted = ladder(FP16, ROUTES).decode(given).result
    with only(full.peak_bytes + 64 * MIB):
        pieces = [torch.empty(2 * MIB, dtype=torch.uint8, device=GPU) for _ in range(full.peak_bytes // (2 * MIB))]
        del pieces
        outcome = ladder(FP16, ROUTES).decode(given)
        assert (outcome.plan.route, outcome.attempts) == (Route.FULL, ())
        torch.cuda.empty_cache()
        pieces = [torch.empty(2 * MIB, dtype=torch.uint8, device=GPU) for _ in range(full.peak_bytes // (2 * MIB))]
        between = pieces[::10]  # one of each of the allocator's segments
        del pieces
        outcome = ladder(FP16, (*ROUTES, Route.CPU)).decode(given)
        del between
    assert outcome.attempts
    assert error(outcome.result, wanted.float()) < 5e-3


def test_what_is_called_free_can_be_had() -> None:
    with crowded(2048 * MIB):
        pieces = [torch.empty(64 * MIB, dtype=torch.uint8, device=GPU) for _ in range(16)]
        del pieces  # in the cache
        free = free_memory(GPU)
        assert free is not None
        assert free >= torch.cuda.mem_get_info(GPU)[0] + 1024 * MIB
        del_me = torch.empty(free - 4 * MIB, dtype=torch.uint8, device=GPU)
        del del_me
        torch.cuda.empty_cache()
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(free + 32 * MIB, dtype=torch.uint8, device=GPU)
        free = free_memory(GPU)
        pieces = [torch.empty(2 * MIB, dtype=torch.uint8, device=GPU) for _ in range(500)]
        between = pieces[::10]
        del pieces
        left = free_memory(GPU)
        assert free is not None
        assert left is not None
        assert left <= free - 900 * MIB  # no large array fits between
        del between


# What a plan takes


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("side", [512, 776, 1024])
def test_peaks(side: int, route: Route, dtype: torch.dtype, operation: Operation) -> None:
    """Those of the fastest plan and of the smallest, with the search for NaN."""
    given, all_plans = source(operation, side, dtype), plans(operation, side, route, dtype)
    fast = [plan for plan in all_plans if plan.seconds < 5 * all_plans[0].seconds]
    for plan in {all_plans[0], min(fast, key=lambda plan: plan.peak_bytes)}:
        ours(operation, given, plan)
        with PeakMemory(GPU) as peak:
            assert ours(operation, given, plan).isfinite().all()
        assert peak.bytes <= plan.peak_bytes <= 1.25 * peak.bytes + 4 * MIB


@pytest.mark.parametrize("side", [256, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_taesd(dtype: torch.dtype, side: int) -> None:
    for operation, run in ((Operation.DECODE, tiny.decode), (Operation.ENCODE, tiny.encode)):
        given = source(operation, side, dtype)
        outcome = ladder(dtype, (Route.TAESD,), taesd=taesd())
        outcome = outcome_of(outcome, operation, given)
        with PeakMemory(GPU) as peak:
            result = run(taesd(), given, outcome.plan.tile, Compute(GPU, dtype))
        assert peak.bytes <= outcome.plan.peak_bytes <= 1.5 * peak.bytes + 4 * MIB
        wanted = getattr(taesd(), operation.value)(given.float().cpu())
        assert error(result.cpu(), wanted) <= {FP32: 1e-5, FP16: 5e-3, BF16: 4e-2}[dtype]


@pytest.mark.parametrize("channels", [64, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_answer_about_attention(dtype: torch.dtype, channels: int) -> None:
    tokens = 8192
    heads = torch.randn(1, 1, tokens, channels, device=GPU, dtype=dtype)
    F.scaled_dot_product_attention(heads, heads, heads)
    with PeakMemory(GPU) as peak:
        F.scaled_dot_product_attention(heads, heads, heads)
    assert attention_is_fused(GPU, dtype, channels) is (peak.bytes < tokens**2 * dtype.itemsize)


# The picture


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize("side", [256, 512])
def test_half_precision_is_no_worse_than_the_plain_networks(
    side: int, dtype: torch.dtype, operation: Operation
) -> None:
    given = source(operation, side).to(dtype)
    exact = plain(operation, given.float())
    theirs = error(plain(operation, given, dtype), exact)
    for route in ROUTES:
        for plan in (plans(operation, side, route, dtype)[0], plans(operation, side, route, dtype)[-1]):
            assert 0 < error(ours(operation, given, plan), exact) <= 1.02 * theirs


@pytest.mark.parametrize("operation", OPERATIONS)
def test_in_float32_all_routes_give_the_plain_picture(operation: Operation) -> None:
    given = source(operation, 512)
    wanted = plain(operation, given)
    for route in ROUTES:
        for plan in (plans(operation, 512, route, FP32)[0], plans(operation, 512, route, FP32)[-1]):
            torch.testing.assert_close(ours(operation, given, plan), wanted, atol=1e-4, rtol=0)


def test_copies_beside_the_work_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, also in a stream that is not the default one, and while the card is busy."""
    given = source(Operation.DECODE, 512, FP16)
    plan = plans(Operation.DECODE, 512, Route.OFFLOAD, FP16)[-1]
    with monkeypatch.context() as patch:
        patch.setenv(transfers.SWITCH, "0")
        wanted = ours(Operation.DECODE, given, plan)
    for _ in range(3):
        torch.cuda._sleep(50_000_000)
        assert torch.equal(ours(Operation.DECODE, given, plan), wanted)
    stream = torch.cuda.Stream(GPU)
    stream.wait_stream(torch.cuda.current_stream(GPU))
    with torch.cuda.stream(stream):
        beside = ours(Operation.DECODE, given, plan)
    stream.synchronize()
    assert torch.equal(beside, wanted)


def test_numbers_that_overflow_are_found_and_repaired() -> None:
    net = AutoencoderKL(SD15).to(GPU, FP16).requires_grad_(False)
    net.load_state_dict(vae(FP16).state_dict())
    assert net.decoder is not None
    net.decoder.mid.block_1.conv2.weight.mul_(1e7).clamp_(-6e4, 6e4)
    given = source(Operation.DECODE, 256, FP16)
    guarded = ladder(FP16, ROUTES)
    guarded.vae = net
    outcome = guarded.decode(given)
    assert [type(event) for event in outcome.events] == [Overflow]
    assert outcome.plan.dtype == FP32
    wanted = net.float().decode(given.float())
    assert error(outcome.result, wanted) < 1e-4


# What users run


def test_the_check_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cuda", "--seconds", "15"]) == 0
    said = capsys.readouterr().out
    assert "Every route gives the plain network's picture." in said
    assert "no more memory than predicted" in said


def test_every_route_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("VAE_GUARD_CALIBRATE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    for dtype in DTYPES:
        PROFILES.check(vae(dtype), Compute(GPU, dtype), told.append)
        profile = PROFILES(Work(vae(dtype).config, Operation.DECODE, 32, 32, 1, GPU, dtype))
        assert profile.plain > 0
        assert not profile.distrusted
    assert told == []
