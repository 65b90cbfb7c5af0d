"""The ladder survives memory that runs out anywhere, numbers that overflow, and input that cannot be used."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.engine.two_devices import THERE, TwoDevices
from tests.networks.small import (
    BF16,
    CPU,
    FP32,
    SMALL,
    distance,
    images,
    latents_for,
    live_tensors,
    network,
    own_network,
    taesd,
)
from vae_lib.decode import Ladder, Outcome
from vae_lib.engine import Operation
from vae_lib.errors import Cancelled, DeviceLost, InputError, NumericError, PlanError
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.networks import AutoencoderKL, AutoencoderKLConfig
from vae_lib.planning import DEFAULT_ORDER, Planner, Profile, Route, Work
from vae_lib.planning.events import MaybeOutOfMemory, NoScratch, OutOfMemory, Overflow

PLENTY = 1 << 40


def ladder(**options: Any) -> Ladder:
    defaults: dict[str, Any] = {"vae": network(), "planner": Planner(lambda device: PLENTY)}
    return Ladder(**{**defaults, **options})


def outcome_of(ladder: Ladder, operation: Operation | str, given: Tensor) -> Outcome:
    """Of decoding latents, which are taken for the sampler's as well, or of encoding a picture."""
    if Operation(operation) is Operation.ENCODE:
        return ladder.encode(given)
    return ladder.decode(VAELatents(given), SamplerLatents(given))


class Allocations(TorchDispatchMode):
    """Counts operations that allocate; from the ``first`` to the ``last`` of them memory runs out."""

    def __init__(self, first: int = 0, last: int = 0, error: Callable[[], Exception] | None = None) -> None:
        super().__init__()
        self.count = self.raised = 0
        self._first, self._last = first, last
        self._error = error or (lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_storage(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        made = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor) and t.device.type == "cpu"]
        if any(_storage(t) not in known for t in made):
            self.count += 1
            if self._first <= self.count <= self._last:
                self.raised += 1
                raise self._error()
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    "python": MemoryError,
}
TINY = AutoencoderKLConfig(ch=32, ch_mult=(1,), num_res_blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize("route", [Route.FULL, Route.OFFLOAD, Route.CPU])
def test_memory_runs_out_once_at_any_allocation(route: Route) -> None:
    """Wherever it happens, the next rung gives the picture and the attempt is told."""
    vae, latents = network(TINY), latents_for(TINY, 3, 2)
    order = (route, *(other for other in (Route.TILED, Route.OFFLOAD) if other is not route))
    wanted = vae.decode(latents)
    first = ladder(vae=vae, order=order).decode(latents).plan.route
    with Allocations() as counter:
        ladder(vae=vae, order=order).decode(latents)
    assert counter.count > 50
    before = live_tensors()
    # Every seventh, with the first and the last; a stride that no loop in the engine shares.
    for k in {*range(1, counter.count, 7 if route is Route.FULL else 53), counter.count}:
        with Allocations(k, k) as memory:
            outcome = ladder(vae=vae, order=order).decode(latents)
        assert memory.raised == 1
        assert distance(outcome.result, wanted) < 1e-5
        (attempt,) = outcome.attempts
        assert attempt.plan.route is first
        assert attempt == OutOfMemory(attempt.plan)
        del outcome
    assert live_tensors() == before


@pytest.mark.parametrize("name", ERRORS)
def test_memory_stays_short(name: str) -> None:
    """From some allocation on nothing works: every way is tried, all are told, and nothing stays alive."""
    latents, net = latents_for(SMALL, 3, 4), network()
    for route in (Route.FULL, Route.TAESD):  # what is cached for good is there
        ladder(vae=net, taesd=taesd(), order=(route,)).decode(latents, latents)
    before = live_tensors()
    alive: list[int] = []

    def budget(device: torch.device) -> int:
        alive.append(live_tensors())  # before every try: the failed one before it is gone
        return PLENTY

    kept = ladder(vae=net, taesd=taesd(), planner=Planner(budget))
    for k in (1, 20, 60):
        message = ""
        with Allocations(k, 1 << 30, ERRORS[name]) as memory:
            try:
                kept.decode(latents, latents)
            except PlanError as error:
                message = str(error)
        assert memory.raised >= 4
        for route in ("full", "tiled", "TAESD"):
            assert route in message
        assert message.count("out of memory") == memory.raised
        assert {*alive, live_tensors()} == {before}


def test_taesd_is_the_last_resort() -> None:
    latents, tiny = latents_for(SMALL, 3, 4), taesd()
    scaled = latents / 2
    with Allocations(1, 2) as memory:
        outcome = ladder(taesd=tiny, order=(Route.FULL, Route.OFFLOAD, Route.TAESD)).decode(latents, scaled)
    assert memory.raised == 2
    assert [attempt.plan.route for attempt in outcome.attempts] == [Route.FULL, Route.OFFLOAD]
    assert outcome.plan.route is Route.TAESD
    assert distance(outcome.result, tiny.decode(scaled)) < 1e-5


def test_other_errors_are_not_hidden() -> None:
    with (
        Allocations(30, 30, lambda: RuntimeError("a bug")) as memory,
        pytest.raises(RuntimeError, match="a bug"),
    ):
        ladder().decode(latents_for(SMALL, 3, 4))
    assert memory.raised == 1


def test_every_route_gives_the_picture() -> None:
    latents = latents_for(SMALL, 9, 6, 2)
    wanted = network().decode(latents)
    for route in DEFAULT_ORDER[:4]:
        outcome = ladder(order=(route,)).decode(latents)
        assert outcome.plan.route is route
        assert outcome.attempts == ()
        assert outcome.seconds > 0
        assert outcome.events == ()
        assert distance(outcome.result, wanted) < 1e-5
    pictures = images(19, 15, 2)
    mean, log_variance = network().encode_moments(pictures)
    for route in DEFAULT_ORDER[:4]:
        outcome = ladder(order=(route,)).encode(pictures)
        assert not outcome.scaled
        assert distance(outcome.result, mean) < 1e-5
        assert outcome.log_variance is not None
        assert distance(outcome.log_variance, log_variance) < 1e-5


def _overflowing(config: AutoencoderKLConfig = SMALL) -> AutoencoderKL:
    """Its activations leave float16's range, as those of SDXL's VAE do, but not float32's."""
    vae = own_network(config)
    for net in (vae.decoder, vae.encoder):
        assert net is not None
        net.mid.block_1.conv2.weight.mul_(1e7)
        net.mid.block_1.conv2.weight.clamp_(-6e4, 6e4)
    return vae


def test_overflow_is_repaired_in_fp32() -> None:
    vae = _overflowing()
    try:
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3).half(), torch.ones(1, 1, 3, 3).half())
    except RuntimeError:
        pytest.skip("this PyTorch has no float16 convolution on CPUs")
    latents = latents_for(SMALL, 4, 3)
    outcome = ladder(vae=vae, dtype=torch.float16).decode(latents)
    (attempt,) = outcome.attempts
    assert attempt == Overflow(attempt.plan)
    assert attempt.plan.dtype == torch.float16
    assert outcome.plan.dtype == outcome.result.dtype == FP32
    assert attempt.plan.route is Route.FULL
    assert distance(outcome.result, vae.decode(latents)) < 1e-4

    pictures = images(8, 6)
    outcome = ladder(vae=vae, dtype=torch.float16).encode(pictures)
    assert len(outcome.attempts) == 1
    assert distance(outcome.result, vae.encode(pictures)) < 1e-4

    outcome = ladder(vae=vae, dtype=torch.float16, repair=(BF16, FP32)).decode(latents)
    assert outcome.plan.dtype == BF16
    with pytest.raises(NumericError, match="Allow fp32"):
        ladder(vae=vae, dtype=torch.float16, repair=()).decode(latents)
    unchecked = ladder(vae=vae, dtype=torch.float16, check_finite=False).decode(latents)
    assert not torch.isfinite(unchecked.result).all()


def test_a_vae_that_no_dtype_saves() -> None:
    vae = own_network()
    assert vae.decoder is not None
    vae.decoder.conv_in.weight.fill_(float("nan"))
    for dtype in (FP32, BF16):
        with pytest.raises(NumericError, match="even in fp32: its file is damaged"):
            ladder(vae=vae, dtype=dtype).decode(latents_for(SMALL, 4, 3))


def test_repair_predicts_with_the_weights_as_they_are() -> None:
    """float32 weights need no copy when half precision gives way to float32."""
    vae = own_network()
    assert vae.decoder is not None
    vae.decoder.conv_out.bias.fill_(3.4e38)  # more than bfloat16's largest number, 3.39e38
    latents = latents_for(SMALL, 4, 3)
    direct, repaired = (ladder(vae=vae, dtype=dtype).decode(latents) for dtype in (FP32, BF16))
    assert len(repaired.attempts) == 1
    assert repaired.plan.peak_bytes == direct.plan.peak_bytes


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(bad: float) -> None:
    latents = latents_for(SMALL, 4, 3)
    latents[0, 1, 2, 0] = bad
    tries: list[int] = []
    for dtype in (FP32, BF16):
        tries.clear()
        with pytest.raises(InputError, match=r"UNet\) failed, not the VAE"):
            ladder(dtype=dtype, progress=lambda done, total: tries.append(done)).decode(latents)
        assert tries.count(1) == 1  # no second try: it could not help
    pictures = images(8, 8)
    pictures[0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="The picture holds NaN"):
        ladder().encode(pictures)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 16, 4, 4), "16 channels and this VAE takes 4: they belong to an SD3 or FLUX.1 model"),
        ((1, 3, 4, 4), "belong to another model"),
        ((4, 4, 4), "four dimensions"),
        ((0, 4, 4, 4), "nothing to decode"),
        ((1, 4, 0, 4), "nothing to decode"),
    ],
)
def test_latents_of_the_wrong_shape(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        ladder().decode(torch.zeros(shape))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("shape", "sentence"), [((1, 4, 8, 8), "3 channels is needed"), ((1, 3, 1, 8), "at least (1, 3, 2, 2)")]
)
def test_pictures_of_the_wrong_shape(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        ladder().encode(torch.zeros(shape))
    assert sentence in str(error.value)


def test_budget_is_asked_before_every_try_and_kept() -> None:
    latents = latents_for(SMALL, 24, 24)
    full = ladder().decode(latents).plan.peak_bytes
    asked: list[torch.device] = []

    def budget(device: torch.device) -> int:
        asked.append(device)
        return full * 2 // 3

    outcome = ladder(planner=Planner(budget)).decode(latents)
    assert outcome.plan.route is not Route.FULL
    assert outcome.plan.peak_bytes <= full * 2 // 3
    assert CPU in asked
    with pytest.raises(PlanError, match="which takes at least"):
        ladder(planner=Planner(lambda device: 1000)).decode(latents)


def test_a_full_disk_makes_way_for_the_next_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("os.posix_fallocate", no_space)
    latents = latents_for(SMALL, 4, 3)
    outcome = ladder(order=(Route.OFFLOAD, Route.CPU)).decode(latents)
    assert outcome.plan.route is Route.CPU
    (attempt,) = outcome.attempts
    assert isinstance(attempt, NoScratch)
    assert "No space left on device" in attempt.problem
    assert distance(outcome.result, network().decode(latents)) < 1e-5
    with pytest.raises(PlanError, match=r"Every enabled route failed \(tiled \+ RAM.*No space left.*TMPDIR"):
        ladder(order=(Route.OFFLOAD,)).decode(latents)
    assert list(tmp_path.iterdir()) == []


def test_no_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(PlanError, match="no folder for the scratch file"):
        ladder(order=(Route.OFFLOAD,)).decode(latents_for(SMALL, 4, 3))


@pytest.mark.parametrize("route", [Route.FULL, Route.OFFLOAD, Route.TAESD])
def test_cancelling_leaves_nothing_alive(route: Route) -> None:
    latents, tiny = latents_for(SMALL, 4, 3, 2), taesd()
    ladder(taesd=tiny, order=(route,)).decode(latents, latents)  # what is remembered from now on
    before = live_tensors()
    stopped = False
    try:
        ladder(taesd=tiny, order=(route,), cancelled=lambda: True).decode(latents, latents)
    except Cancelled:
        stopped = True
    assert stopped
    assert live_tensors() == before


@pytest.mark.parametrize("route", DEFAULT_ORDER)
def test_progress_counts_to_the_total_of_the_plan(route: Route) -> None:
    calls: list[tuple[int, int]] = []
    options = {"taesd": taesd(), "order": (route,), "progress": lambda *call: calls.append(call)}
    for run in (
        lambda: ladder(**options).decode(*[latents_for(SMALL, 4, 3, 2)] * 2),
        lambda: ladder(vae=None if route is Route.TAESD else network(), **options).encode(images(16, 8, 2)),
    ):
        calls.clear()
        outcome: Outcome = run()
        assert calls == [(done, outcome.plan.bands) for done in range(1, outcome.plan.bands + 1)]


def test_taesd_alone_takes_and_gives_scaled_latents() -> None:
    tiny = taesd()
    outcome = ladder(vae=None, taesd=tiny).encode(images(16, 24))
    assert outcome.scaled
    assert outcome.log_variance is None
    assert distance(outcome.result, tiny.encode(images(16, 24))) < 1e-5
    with pytest.raises(PlanError, match="there is no TAESD"):
        ladder(order=(Route.TAESD,)).decode(latents_for(SMALL, 3, 3))


def failing(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> list[Any]:
    """Let attempts fail in turn, None: not; returns the plans that were tried."""
    plans: list[Any] = []
    execute = Ladder._execute

    def fail(self: Ladder, plan: Any, *args: Any) -> Outcome:
        plans.append(plan)
        error = errors[len(plans) - 1] if len(plans) <= len(errors) else None
        if error is not None:
            raise error
        return execute(self, plan, *args)

    monkeypatch.setattr(Ladder, "_execute", fail)
    return plans


NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")
SHORT = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_memory_that_was_in_pieces_is_put_together_and_the_same_plan_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vae_lib.decode.ladder.keeps_freed_memory", lambda device: True)
    plans = failing(monkeypatch, SHORT)
    outcome = ladder().decode(latents_for(SMALL, 4, 4))
    assert plans[0] == plans[1]
    assert (outcome.plan.route, outcome.events) == (Route.FULL, ())
    plans = failing(monkeypatch, SHORT, SHORT)
    outcome = ladder().decode(latents_for(SMALL, 4, 4))
    assert plans[0] == plans[1] != plans[2]
    assert [type(event) for event in outcome.events] == [OutOfMemory]


def test_what_may_be_too_little_memory_gets_one_smaller_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = failing(monkeypatch, NO_ENGINE)
    outcome = ladder().decode(latents_for(SMALL, 4, 4))
    (event,) = outcome.events
    assert isinstance(event, MaybeOutOfMemory)
    assert "unable to find an engine" in event.said
    plans = failing(monkeypatch, NO_ENGINE, NO_ENGINE)
    with pytest.raises(PlanError, match="a smaller attempt before it, too: perhaps out of memory"):
        ladder().decode(latents_for(SMALL, 4, 4))
    assert len(plans) == 2


def test_a_device_that_is_lost_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = failing(monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered\nmore"))
    with pytest.raises(DeviceLost, match=r"does not answer any more \(CUDA error: an illegal memory access"):
        ladder().decode(latents_for(SMALL, 4, 4))
    assert len(plans) == 1


def test_an_error_that_was_being_handled_says_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forge calls for its tiles while it handles that the memory ran out."""
    plans = failing(monkeypatch, RuntimeError("a bug"))

    def decode_while_handling() -> None:
        try:
            raise SHORT
        except RuntimeError:
            ladder().decode(latents_for(SMALL, 4, 4))

    with pytest.raises(RuntimeError, match="a bug"):
        decode_while_handling()
    assert len(plans) == 1


def test_where_nobody_knows_what_is_free_little_is_taken_first() -> None:
    known = ladder(planner=Planner(lambda device: None)).decode(latents_for(SMALL, 4, 4))
    assert known.plan.route is Route.FULL  # it takes little
    assert known.plan.free_bytes is None


def test_the_spare_device_is_planned_for_and_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second GPU where the first has no room: by its own memory and profile, weights brought layer by layer."""
    asked: list[torch.device] = []
    room = {CPU: 1000, THERE: 1 << 40}

    def profiles(work: Work) -> Profile:
        asked.append(work.device)
        return Profile.usual(work)

    planner = Planner(lambda device: room[device], profiles)
    short = ladder(planner=planner, spare=THERE, output_device=CPU)
    latents = latents_for(SMALL, 6, 5)
    with TwoDevices():
        outlook = short.outlook(short.work("decode", 6, 5, 1))
        outcome = short.decode(latents)
        encoded = short.encode(images(12, 10))
    assert outlook.chosen is not None
    assert (outlook.chosen.route, outlook.chosen.device) == (Route.CPU, THERE)
    assert outlook.chosen.describe().startswith("on meta")
    assert THERE in asked
    assert outcome.plan.device == encoded.plan.device == THERE
    assert type(outcome.result) is Tensor  # brought back
    assert distance(outcome.result, network().decode(latents)) < 1e-5
    assert distance(encoded.result, network().encode(images(12, 10))) < 1e-5
    room[THERE] = 1000
    with pytest.raises(PlanError, match=r"1\.0 kB is not enough for decoding"):
        short.decode(latents)


def test_weights_that_lie_in_two_places_or_types() -> None:
    """As a host leaves them that loads a VAE in part."""
    vae = own_network()
    assert vae.decoder is not None
    latents = latents_for(SMALL, 4, 4)
    assert ladder(vae=vae).work("decode", 4, 4, 1).resident
    vae.decoder.conv_out.double()
    assert not ladder(vae=vae).work("decode", 4, 4, 1).resident
    assert distance(ladder(vae=vae).decode(latents).result, network().decode(latents)) < 1e-5


def test_what_the_cpu_made_stays_there_if_the_device_has_no_room_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents = latents_for(SMALL, 4, 4)
    wanted = network().decode(latents)
    to = Tensor.to

    def no_room(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.device("meta") in args:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", no_room)
    outcome = ladder(order=(Route.CPU,), output_device=torch.device("meta")).decode(latents)
    assert outcome.attempts == ()
    assert distance(outcome.result, wanted) < 1e-5
    encoded = ladder(order=(Route.CPU,), output_device=torch.device("meta")).encode(images(8, 8))
    assert encoded.log_variance is not None
    assert encoded.log_variance.device == encoded.result.device == CPU
