"""Ways of doing one decode or encode, what each needs, and the choice among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vae_lib.device import transfers
from vae_lib.device.memory import FIRST_PROMISE, largest_block
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.padding import ZEROS, Padding
from vae_lib.engine.passes import MapSize
from vae_lib.engine.programs import taesd as tiny
from vae_lib.engine.programs.autoencoder_kl import Tiling
from vae_lib.errors import PlanError
from vae_lib.networks import TAESD, AutoencoderKL, AutoencoderKLConfig
from vae_lib.planning.cost import Cost, estimate, estimate_plain
from vae_lib.planning.route import (
    Distrusted,
    DoesNotFit,
    FreeUnknown,
    Objection,
    Route,
    TooSlow,
    Unavailable,
)
from vae_lib.units import size_text

MIB = 1 << 20
LAST_FEW = (
    4  # smallest bands of a ladder, among which the least peak is: tiny ones can take more for their halos
)
UNLIMITED = 1 << 62  # bytes
WHOLE = 1 << 50  # larger than any activation: the picture is one band
PLAIN_ROOM = 1.15  # for what PyTorch's kernels take beside their results and what is counted of that


ON_DEVICE = (Route.FULL, Route.TILED, Route.OFFLOAD)
DEFAULT_ORDER = (Route.FULL, Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD)


@dataclass(frozen=True)
class Work:
    """What is to be done, without the data: enough to predict it.

    Attributes:
        config: the VAE's; for TAESD alone, None.
        operation: which of the two, or its name.
        height, width: of the latents.
        picture: height and width of the picture to encode, if they are no multiples of the downscale.
        batch: pictures; they are done one after the other.
        device, dtype: where and in which floating-point type to compute.
        padding: what the convolutions find beyond the picture's edges.
        resident: whether the VAE's weights lie on the device in that dtype already.
        output_on_device: whether the result stays on the device.
        taesd: whether a TAESD is at hand.
    """

    config: AutoencoderKLConfig | None
    operation: Operation
    height: int
    width: int
    batch: int
    device: torch.device
    dtype: torch.dtype
    padding: Padding = ZEROS
    resident: bool = True
    output_on_device: bool = True
    taesd: bool = False
    latent_channels: int = 4
    picture: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "operation", Operation(self.operation))  # its name will do

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the picture."""
        if self.picture is not None:
            return self.picture
        scale = 8 if self.config is None else self.config.downscale
        return self.height * scale, self.width * scale


@dataclass(frozen=True)
class Rates:
    """How fast a device works.

    Attributes:
        multiplications: a second, in the engine's convolutions.
        moved: bytes of activations read and written a second.
        transferred: bytes a second between host and device.
        dispatch_seconds: what it takes to ask PyTorch for one operation, however small.
        plain_multiplications: a second, in PyTorch's own convolutions of TAESD's width.
        plain: how many times longer the plain network takes than these rates say; 0: it was not timed.
        wrong: routes that gave another picture than the plain network when they were tried on the device.
    """

    multiplications: float
    moved: float
    transferred: float
    dispatch_seconds: float
    plain_multiplications: float
    plain: float = 0.0
    wrong: frozenset[Route] = frozenset()

    def seconds(self, cost: Cost, apart: bool = False, overlapping: bool = False) -> float:
        """Of the work on a device.

        Args:
            apart: the device works on while it is told what to do next (a GPU), so that the slower of the two counts.
            overlapping: copies between host and device run while the device computes.
        """
        computing = cost.multiplications / self.multiplications + cost.moved_bytes / self.moved
        telling = cost.dispatches * self.dispatch_seconds
        beside = cost.transferred_bytes - cost.exposed_bytes if overlapping else 0
        copying = (cost.transferred_bytes - beside) / self.transferred
        computing = max(computing, telling) if apart else computing + telling
        return max(computing, beside / self.transferred) + copying


def default_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Rates of an ordinary machine of that kind, for want of a measurement."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        slow = 1 if dtype == torch.float32 else 8  # half precision is emulated on most CPUs
        return Rates(32e9 * threads / slow, 15e9 / slow, 2e9, 5e-6, 32e9 * threads / slow)
    fast = 1 if dtype == torch.float32 else 4
    return Rates(4e12 * fast, 250e9, 10e9, 2e-5, 4e12 * fast)


@dataclass(frozen=True)
class Plan:
    """One way of doing the work.

    Attributes:
        route: which rung of the ladder.
        device, dtype: where and in what it computes.
        tiling: how the picture is cut into bands; None for TAESD and for the plain network.
        tile: side of a TAESD tile in latents.
        peak_bytes: predicted peak on the device, weights that are already there not counted.
        host_bytes: main memory for activations that are offloaded from another device.
        largest_bytes: predicted size of the largest array on the device.
        seconds: predicted time.
        band_rows: rows of the picture (decode) or of the largest layer (encode) in one band.
        bands: bands processed in all.
        free_bytes: what was free on its device when it was chosen, None where nobody knows; 0 for a candidate that was
            not.
        why: what spoke against the ways that are preferred to it.
    """

    route: Route
    device: torch.device
    dtype: torch.dtype
    tiling: Tiling | None
    tile: int
    peak_bytes: int
    seconds: float
    band_rows: int
    bands: int
    host_bytes: int = 0
    largest_bytes: int = 0
    free_bytes: int | None = 0
    why: tuple[Objection, ...] = ()

    def describe(self) -> str:
        """The route in words, such as "tiled in 48-row bands"."""
        if self.route is Route.TAESD:
            return f"TAESD in {self.tile * 8}-pixel tiles" if self.bands > 1 else "TAESD"
        name = "on the CPU" if self.route is Route.CPU else self.route.label
        if self.is_plain:
            return f"{name} (plain network)"
        return name if self.is_whole else f"{name} in {self.band_rows}-row bands"

    def fits(self, free: int) -> bool:
        """Into so many bytes, and its largest array into what the device allocates at once."""
        most = largest_block(self.device)
        return self.peak_bytes <= free and (most is None or self.largest_bytes <= most)

    @property
    def is_plain(self) -> bool:
        """Whether it is PyTorch's own way through the network."""
        return self.tiling is None and self.route is not Route.TAESD

    @property
    def is_whole(self) -> bool:
        """Whether the picture is one band."""
        return self.tiling is not None and self.tiling.band_bytes >= WHOLE


class NothingFits(PlanError):
    """No allowed way can be taken now; ``event`` says it as a fact."""

    def __init__(self, message: str, event: Objection) -> None:
        super().__init__(message)
        self.event = event


@functools.lru_cache(maxsize=16)
def _skeleton(config: AutoencoderKLConfig) -> AutoencoderKL:
    """The network without weights; predictions need only its shape."""
    with torch.device("meta"):
        return AutoencoderKL(config)


@functools.lru_cache(maxsize=4)
def _tiny_reach(latent_channels: int) -> tuple[int, int]:
    with torch.device("meta"):
        network = TAESD(latent_channels)
    return network.decoder_reach, -(-network.encoder_reach // 8)


def _input_shape(work: Work) -> tuple[int, int, int, int]:
    """Of the latents or pictures.

    Raises:
        PlanError: when the weights hold no half for it.
    """
    assert work.config is not None
    if getattr(_skeleton(work.config), work.operation.half) is None:
        raise PlanError(
            f"This VAE file holds only {work.operation.other_half}, so it cannot {work.operation.value}; "
            "choose a full VAE."
        )
    if work.operation is Operation.DECODE:
        return work.batch, work.config.latent_channels, work.height, work.width
    return work.batch, work.config.in_channels, *work.pixels


def _compute(work: Work) -> Compute:
    elsewhere = None if work.output_on_device else torch.device("meta")
    return Compute(work.device, work.dtype, work.padding, elsewhere)


@functools.lru_cache(maxsize=4096)
def cost_of(work: Work, tiling: Tiling) -> Cost:
    """Cost of the work under a tiling.

    Raises:
        PlanError: when the weights hold no half for it.
    """
    assert work.config is not None
    shape, decodes = _input_shape(work), work.operation is Operation.DECODE
    return estimate(
        _skeleton(work.config), shape, tiling, _compute(work), resident=work.resident, decodes=decodes
    )


@functools.lru_cache(maxsize=256)
def plain_cost_of(work: Work) -> Cost:
    """The same of the plain network, picture by picture, with its weights on the device."""
    assert work.config is not None
    shape = _input_shape(work)
    return estimate_plain(
        _skeleton(work.config), shape, _compute(work), decodes=work.operation is Operation.DECODE
    )


def _band_sizes(work: Work, route: Route) -> Sequence[int]:
    """Band sizes worth trying, largest first: up to the whole picture on a GPU, to stay in the cache on a CPU.

    Bands of less than four rows cost much time, for the halo, and save memory only if the rows are very long.
    """
    assert work.config is not None
    if work.device.type == "cpu":
        return _halved(16 * MIB, work, 1 if route is Route.FULL else None)
    if route is Route.FULL:
        return [WHOLE, *_halved(1024 * MIB, work, 5)]
    if route is Route.OFFLOAD:
        return _halved(32 * MIB, work)  # several bands, even of a small picture: one is copied beside another
    return _halved(256 * MIB, work)


def _halved(largest: int, work: Work, count: int | None = None) -> list[int]:
    assert work.config is not None
    height, width = work.pixels
    row = width * work.config.widths[0] * 2 * work.dtype.itemsize
    smallest = max(32 << 10, min(MIB, 4 * row))
    sizes = [largest >> i for i in range(14) if largest >> i >= smallest][:count]
    return [size for size in sizes if size < 2 * height * row] or sizes[-1:]  # larger ones would be no others


def _tilings(work: Work, route: Route) -> list[list[Tiling]]:
    """The tilings of a route: for each amount of recomputing, from the fastest and largest down."""
    sizes = _band_sizes(work, route)
    # computing again also saves copies, but a CPU has no copies to save
    apart = route is Route.OFFLOAD and transfers.kind_for(work.device) is not None
    most = 2 if route is Route.TILED or apart else 0
    return [
        [Tiling(size, recompute, route is Route.OFFLOAD, min(64 * MIB, max(MIB, 4 * size))) for size in sizes]
        for recompute in range(most + 1)
    ]


def candidates(work: Work, route: Route, rates: Rates | None = None) -> list[Plan]:
    """All ways of taking one route, by and large from the fastest and largest to the slowest and smallest."""
    return [make() for ladder in _ladders(work, route, rates) for make in ladder]


def _ladders(work: Work, route: Route, rates: Rates | None) -> list[list[Callable[[], Plan]]]:
    """Candidates still to be costed, in sequences along which the peak falls (but for the last few, tiny, bands)."""
    if route is Route.TAESD:
        return (
            [[functools.partial(lambda plan: plan, plan) for plan in _tiny_candidates(work, rates)]]
            if work.taesd
            else []
        )
    if work.config is None:
        return []
    wrong = rates is not None and route in rates.wrong
    if route is Route.CPU:
        if work.device.type != "cpu":
            work = replace(
                work, device=torch.device("cpu"), dtype=torch.float32, resident=False, output_on_device=True
            )
            rates = None  # those of the other device
        ladders = [*_tilings(work, Route.FULL), *_tilings(work, Route.TILED)]
    else:
        ladders = [] if wrong else _tilings(work, route)
    made: list[list[Callable[[], Plan]]] = [
        [functools.partial(_costed, work, route, tiling, rates) for tiling in ladder] for ladder in ladders
    ]
    is_timed = rates is not None and rates.plain > 0
    if route is Route.FULL and rates is not None and is_timed and work.resident and work.padding.is_zeros:
        made.append([functools.partial(_costed_plain, work, rates)])
    return made


def _costed_plain(work: Work, rates: Rates) -> Plan:
    cost = plain_cost_of(work)
    seconds = rates.plain * rates.seconds(cost, work.device.type != "cpu")
    return Plan(
        Route.FULL,
        work.device,
        work.dtype,
        None,
        0,
        round(PLAIN_ROOM * cost.peak_bytes),
        seconds,
        work.pixels[0],
        work.batch,
        largest_bytes=cost.largest_bytes,
    )


def _costed(work: Work, route: Route, tiling: Tiling, rates: Rates | None) -> Plan:
    assert work.config is not None
    cost = cost_of(work, tiling)
    level = MapSize(*work.pixels, work.config.widths[0])
    rows = min(tiling.rows(level, work.dtype), level.height)
    kind = transfers.kind_for(work.device)
    speed = rates or default_rates(work.device, work.dtype)
    seconds = speed.seconds(cost, work.device.type != "cpu", kind is not None and kind.overlapping)
    host = 0 if kind is None else cost.host_bytes
    return Plan(
        route,
        work.device,
        work.dtype,
        tiling,
        0,
        cost.peak_bytes,
        seconds,
        rows,
        cost.bands,
        host,
        cost.largest_bytes,
    )


def _tiny_candidates(work: Work, rates: Rates | None) -> Iterator[Plan]:
    rates = rates or default_rates(work.device, work.dtype)
    height, width = work.height, work.width
    decoder_reach, encoder_reach = _tiny_reach(work.latent_channels)
    reach = decoder_reach if work.operation is Operation.DECODE else encoder_reach
    largest = max(height, width)
    for side in (largest, *(s for s in (256, 128, 64, 32, 16, 8) if s < largest)):
        grid = tiny.Grid(height, width, side, reach, work.padding)
        peak = tiny.peak_bytes(grid, work.dtype, work.latent_channels)
        result = 3 * 64 if work.operation is Operation.DECODE else work.latent_channels
        out = work.batch * height * width * result * work.dtype.itemsize * work.output_on_device
        count = -(-height // side) * -(-width // side)
        work_done = work.batch * tiny.multiplications(grid)
        seconds = work_done / rates.plain_multiplications + work.batch * count * 100 * rates.dispatch_seconds
        yield Plan(
            Route.TAESD,
            work.device,
            work.dtype,
            None,
            side,
            peak + out,
            seconds,
            min(side, height) * 8,
            work.batch * count,
            largest_bytes=max(out, tiny.map_bytes(grid, work.dtype, margin=1)),
        )


def choose(
    work: Work,
    free_bytes: int | None,
    *,
    order: Sequence[Route] = DEFAULT_ORDER,
    cpu_free_bytes: int | None = None,
    rates: Rates | None = None,
    patience: float = 20.0,
) -> Plan:
    """The first way in ``order`` that fits; of full, tiled and offload, which give the same picture, the fastest.

    Args:
        free_bytes: what may be allocated on the device on top of what is there. None: nobody knows, and the best way
            that takes little is chosen, or the one that takes least.
        order: routes allowed, the preferred first.
        cpu_free_bytes: the same of main memory, for another device's CPU route and what it offloads; None: not
            checked.
        patience: an exact way that takes over this many times the full decode's time gives way to TAESD, if that is
            allowed and there.

    Raises:
        NothingFits: when nothing does; it says the least that would do.
    """
    if free_bytes is None:
        known = functools.partial(
            choose, work, order=order, cpu_free_bytes=cpu_free_bytes, rates=rates, patience=patience
        )
        return _promised(work, order, rates, known)
    allowed = tuple(order)
    fitting: list[Plan] = []
    short_of_ram = ""
    for route in allowed:
        best = _first_fit(work, route, _limit(work, route, free_bytes, cpu_free_bytes), rates)
        if best is not None and cpu_free_bytes is not None and best.host_bytes > cpu_free_bytes:
            order = [other for other in order if other is not route]
            short_of_ram = (
                f" ({best.describe()} would need {size_text(best.host_bytes, up=True)} of main memory, of which "
                f"{size_text(cpu_free_bytes)} is free.)"
            )
        elif best is not None:
            fitting.append(best)
            if best.route is Route.FULL or not best.route.exact:
                break  # nothing after it could be preferred
    full = _first_fit(work, Route.FULL, UNLIMITED, rates)
    why = _against_full(full, free_bytes, allowed, rates)
    if not fitting:
        least = smallest(work, order, rates)
        if least is not None and least.fits(free_bytes):
            return replace(least, free_bytes=free_bytes, why=why)
        if least is None:
            problem = (
                "None of the allowed ways can be used: there is no TAESD, and no other way was allowed, or is possible "
                "on this device." + short_of_ram
            )
            raise NothingFits(problem, Unavailable(allowed, problem))
        raise NothingFits(
            f"{size_text(free_bytes)} is not enough for {_size(work)}, which takes at least "
            f"{size_text(least.peak_bytes, up=True)} ({least.describe()}). Free some memory, allow more ways, "
            "or choose a smaller picture." + short_of_ram,
            DoesNotFit(least.route, least.peak_bytes, free_bytes),
        )
    chosen = fitting[0]
    if chosen.route in ON_DEVICE:
        chosen = min((plan for plan in fitting if plan.route in ON_DEVICE), key=lambda plan: plan.seconds)
    if full is not None and chosen.route.exact and chosen.seconds > patience * full.seconds:
        quick = next((plan for plan in fitting if not plan.route.exact), None)
        if quick is not None:
            chosen, why = quick, (*why, TooSlow(chosen.route, chosen.seconds))
    if chosen.route is Route.FULL:
        why = ()
    free = free_bytes if chosen.device == work.device else cpu_free_bytes or 0
    return replace(chosen, free_bytes=free, why=why)


def _against_full(
    full: Plan | None, free_bytes: int, allowed: Sequence[Route], rates: Rates | None
) -> tuple[Objection, ...]:
    """What spoke against the full way, where it was allowed."""
    if rates is not None and Route.FULL in rates.wrong and Route.FULL in allowed:
        return (Distrusted(Route.FULL),)
    if full is not None and full.peak_bytes > free_bytes:
        return (DoesNotFit(Route.FULL, full.peak_bytes, free_bytes),)
    return ()


def _promised(work: Work, order: Sequence[Route], rates: Rates | None, known: Callable[[int], Plan]) -> Plan:
    """Where nobody knows what is free: what fits into a small promise, or else what takes least."""
    try:
        plan = known(FIRST_PROMISE)
    except PlanError:
        least = smallest(work, order, rates)
        if least is None:
            raise
        plan = least
    why = tuple(FreeUnknown(e.route, e.need_bytes) if isinstance(e, DoesNotFit) else e for e in plan.why)
    return replace(plan, free_bytes=None if plan.device == work.device else plan.free_bytes, why=why)


def _limit(work: Work, route: Route, free_bytes: int, cpu_free_bytes: int | None) -> int:
    if route is not Route.CPU or work.device.type == "cpu":
        return free_bytes
    return cpu_free_bytes if cpu_free_bytes is not None else UNLIMITED


def _first_fit(work: Work, route: Route, limit: int, rates: Rates | None) -> Plan | None:
    """The fastest plan of the route that fits, found by bisection along each ladder."""
    fitting: list[Plan] = []
    for ladder in _ladders(work, route, rates):
        low, high, found = 0, len(ladder), None
        while low < high:
            middle = (low + high) // 2 if low else 0  # the first is the likeliest: most pictures fit
            plan = ladder[middle]()
            if plan.fits(limit):
                found, high = plan, middle
            else:
                low = middle + 1
        if found is not None:
            fitting.append(found)  # large bands that recompute can be faster than tiny ones that do not
    return min(fitting, key=lambda plan: plan.seconds, default=None)


def smallest(work: Work, order: Sequence[Route] = DEFAULT_ORDER, rates: Rates | None = None) -> Plan | None:
    """The way that needs least memory on the device; None when none of the routes can be used there."""
    ladders = [ladder for route in order for ladder in _ladders(work, route, rates)]
    plans = [make() for ladder in ladders for make in ladder[-LAST_FEW:]]
    usable = (plan for plan in plans if plan.device == work.device and plan.fits(UNLIMITED))
    return min(usable, key=lambda plan: plan.peak_bytes, default=None)


def _size(work: Work) -> str:
    height, width = work.pixels
    verb = "decoding" if work.operation is Operation.DECODE else "encoding"
    return f"{verb} {width}x{height} in {dtype_name(work.dtype)}"


# The floating-point types that a VAE may compute in, by their names.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
