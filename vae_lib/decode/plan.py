"""Ways of doing one decode or encode, what each needs, and the choice among them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from vae_lib.decode import tiny, transfers
from vae_lib.decode.cost import Cost, estimate
from vae_lib.decode.passes import MapSize, Pass
from vae_lib.decode.program import Tiling, decoder_passes, encoder_passes
from vae_lib.errors import PlanError
from vae_lib.networks import TAESD, AutoencoderKL, AutoencoderKLConfig
from vae_lib.units import size_text

MIB = 1 << 20


class Route(str, Enum):
    """A way of getting the picture; all but TAESD give the same one."""

    FULL = "full"
    TILED = "tiled"
    OFFLOAD = "offload"
    TAESD = "taesd"
    CPU = "cpu"

    @property
    def exact(self) -> bool:
        return self is not Route.TAESD


ON_DEVICE = (Route.FULL, Route.TILED, Route.OFFLOAD)
DEFAULT_ORDER = (Route.FULL, Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD)


@dataclass(frozen=True)
class Work:
    """What is to be done, without the data: enough to predict it.

    Attributes:
        config: the VAE's; for TAESD alone, None.
        operation: "decode" or "encode".
        height, width: of the latents.
        picture: height and width of the picture to encode, if they are no multiples of the downscale.
        batch: pictures; they are done one after the other.
        device, dtype: where and in which floating-point type to compute.
        wrap: pad circularly (seamless textures).
        resident: whether the VAE's weights lie on the device in that dtype already.
        output_on_device: whether the result stays on the device.
        taesd: whether a TAESD is at hand.
    """

    config: AutoencoderKLConfig | None
    operation: str
    height: int
    width: int
    batch: int
    device: torch.device
    dtype: torch.dtype
    wrap: bool = False
    resident: bool = True
    output_on_device: bool = True
    taesd: bool = False
    latent_channels: int = 4
    picture: tuple[int, int] | None = None

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
        band_seconds: what a band costs however small it is.
        plain_multiplications: a second, in PyTorch's own convolutions of TAESD's width.
    """

    multiplications: float
    moved: float
    transferred: float
    band_seconds: float
    plain_multiplications: float

    def seconds(self, cost: Cost, overlapping: bool = False) -> float:
        """``overlapping``: copies between host and device run while the device computes."""
        computing = cost.multiplications / self.multiplications + cost.moved_bytes / self.moved
        beside = cost.transferred_bytes - cost.exposed_bytes if overlapping else 0
        copying = (cost.transferred_bytes - beside) / self.transferred
        return max(computing, beside / self.transferred) + copying + cost.bands * self.band_seconds


def default_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Rates of an ordinary machine of that kind, for want of a measurement."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        slow = 1 if dtype == torch.float32 else 8  # half precision is emulated on most CPUs
        return Rates(32e9 * threads / slow, 15e9 / slow, 2e9, 5e-4, 32e9 * threads / slow)
    fast = 1 if dtype == torch.float32 else 4
    return Rates(4e12 * fast, 250e9, 10e9, 4e-4, 4e12 * fast)


@dataclass(frozen=True)
class Plan:
    """One way of doing the work.

    Attributes:
        route: which rung of the ladder.
        device, dtype: where and in what it computes.
        tiling: how the picture is cut into bands; None for TAESD.
        tile: side of a TAESD tile in latents.
        peak_bytes: predicted peak on the device, weights that are already there not counted.
        host_bytes: main memory for activations that are offloaded from another device.
        seconds: predicted time.
        band_rows: rows of the picture (decode) or of the largest layer (encode) in one band.
        bands: bands processed in all.
        reason: why this one, in a line; empty for a candidate that was not chosen.
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
    reason: str = ""

    def describe(self) -> str:
        """The route in words, such as "tiled, 48-row bands"."""
        if self.route is Route.TAESD:
            return f"TAESD, {self.tile * 8}-pixel tiles" if self.bands > 1 else "TAESD"
        return f"{'on the CPU' if self.route is Route.CPU else self.route.value}, {self.band_rows}-row bands"


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


def passes_for(work: Work, tiling: Tiling) -> tuple[list[Pass], MapSize]:
    """The passes of the work and the size of their input."""
    assert work.config is not None
    network = _skeleton(work.config)
    if work.operation == "decode":
        if network.decoder is None:
            raise PlanError("This VAE file holds only an encoder, so it cannot decode; choose a full VAE.")
        size = MapSize(work.height, work.width, work.config.z_channels)
        return decoder_passes(network.decoder, size, tiling, work.device, work.dtype), size
    if network.encoder is None:
        raise PlanError("This VAE file holds only a decoder, so it cannot encode; choose a full VAE.")
    size = MapSize(*work.pixels, work.config.in_channels)
    return encoder_passes(network.encoder, size, tiling, work.device, work.dtype), size


@functools.lru_cache(maxsize=4096)
def cost_of(work: Work, tiling: Tiling) -> Cost:
    """Cost of the work under a tiling; the peak is for the whole batch, the rest for all its pictures."""
    assert work.config is not None
    passes, size = passes_for(work, tiling)
    item = work.dtype.itemsize
    height, width = work.pixels
    latents, picture, clamped = work.height * work.width, height * width * 3, 0
    if work.operation == "decode":
        channels = work.config.z_channels
        post_quant = (work.config.embed_dim + channels) if work.config.use_post_quant_conv else channels
        base = work.batch * picture * item * work.output_on_device + latents * post_quant * item
    else:
        z, embed = 2 * work.config.z_channels, 2 * work.config.embed_dim
        quant = work.config.use_quant_conv
        base = picture + work.batch * latents * (embed if quant else z) + latents * z * quant
        base = (base + (z + 1) * embed * (quant and not work.resident)) * item
        clamped = work.batch * latents * (embed if quant else z) // 2 * item
    cost = estimate(
        passes, size, device=work.device, dtype=work.dtype, offload=tiling.offload, wrap=work.wrap,
        resident=work.resident, base_bytes=base,
    )  # fmt: skip
    return Cost(
        max(cost.peak_bytes, base + clamped), work.batch * cost.multiplications, work.batch * cost.moved_bytes,
        work.batch * cost.transferred_bytes, work.batch * cost.exposed_bytes, cost.host_bytes, work.batch * cost.bands,
    )  # fmt: skip


def _band_sizes(work: Work, offload: bool) -> Sequence[int]:
    """Band sizes worth trying, largest first: to fill a GPU, or to stay in the cache of a CPU.

    Bands of less than four rows cost much time, for the halo, and save memory only if the rows are very long.
    """
    assert work.config is not None
    largest = 16 * MIB if work.device.type == "cpu" else 64 * MIB
    if offload and work.device.type != "cpu":
        largest //= 2  # several bands, even of a small picture: one is copied while another is computed
    row = work.pixels[1] * work.config.widths[0] * 2 * work.dtype.itemsize
    smallest = max(32 << 10, min(MIB, 4 * row))
    return [largest >> i for i in range(12) if largest >> i >= smallest]


def _tilings(work: Work, route: Route) -> list[list[Tiling]]:
    """The tilings of a route: for each amount of recomputing, from the fastest and largest down."""
    sizes = _band_sizes(work, route is Route.OFFLOAD)[: 1 if route is Route.FULL else None]
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
    if route is Route.CPU:
        if work.device.type != "cpu":
            work = replace(
                work, device=torch.device("cpu"), dtype=torch.float32, resident=False, output_on_device=True
            )
            rates = None  # those of the other device
        ladders = [*_tilings(work, Route.FULL), *_tilings(work, Route.TILED)]
    else:
        ladders = _tilings(work, route)
    return [
        [functools.partial(_costed, work, route, tiling, rates) for tiling in ladder] for ladder in ladders
    ]


def _costed(work: Work, route: Route, tiling: Tiling, rates: Rates | None) -> Plan:
    assert work.config is not None
    cost = cost_of(work, tiling)
    level = MapSize(*work.pixels, work.config.widths[0])
    rows = min(tiling.rows(level, work.dtype), level.height)
    kind = transfers.kind_for(work.device)
    speed = rates or default_rates(work.device, work.dtype)
    seconds = speed.seconds(cost, kind is not None and kind.overlapping)
    host = 0 if kind is None else cost.host_bytes
    return Plan(route, work.device, work.dtype, tiling, 0, cost.peak_bytes, seconds, rows, cost.bands, host)


def _tiny_candidates(work: Work, rates: Rates | None) -> Iterator[Plan]:
    rates = rates or default_rates(work.device, work.dtype)
    height, width = work.height, work.width
    decoder_reach, encoder_reach = _tiny_reach(work.latent_channels)
    reach = decoder_reach if work.operation == "decode" else encoder_reach
    largest = max(height, width)
    for side in (largest, *(s for s in (256, 128, 64, 32, 16, 8) if s < largest)):
        halo = 0 if side >= largest and not work.wrap else reach
        peak = tiny.peak_bytes(height, width, side, halo, work.wrap, work.dtype, work.latent_channels)
        result = 3 * 64 if work.operation == "decode" else work.latent_channels
        peak += work.batch * height * width * result * work.dtype.itemsize * work.output_on_device
        count = -(-height // side) * -(-width // side)
        work_done = work.batch * tiny.multiplications(height, width, side, halo, work.wrap)
        seconds = work_done / rates.plain_multiplications + work.batch * count * 30 * rates.band_seconds
        yield Plan(
            Route.TAESD,
            work.device,
            work.dtype,
            None,
            side,
            peak,
            seconds,
            min(side, height) * 8,
            work.batch * count,
        )


def choose(
    work: Work,
    free_bytes: int,
    *,
    order: Sequence[Route] = DEFAULT_ORDER,
    cpu_free_bytes: int | None = None,
    rates: Rates | None = None,
    patience: float = 20.0,
) -> Plan:
    """The first way in ``order`` that fits; of full, tiled and offload, which give the same picture, the fastest.

    Args:
        free_bytes: what may be allocated on the device on top of what is there.
        order: routes allowed, the preferred first.
        cpu_free_bytes: the same of main memory, for another device's CPU route and what it offloads; None: not
            checked.
        patience: an exact way that takes over this many times the full decode's time gives way to TAESD, if that is
            allowed and there.

    Raises:
        PlanError: when nothing fits; it says the least that would do.
    """
    fitting: list[Plan] = []
    short_of_ram = ""
    for route in tuple(order):
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
    full = _first_fit(work, Route.FULL, 1 << 62, rates)
    if not fitting:
        least = smallest(work, order, rates)
        if least is not None and least.peak_bytes <= free_bytes:
            return replace(least, reason=_reason(least, work, free_bytes, full))
        if least is None:
            raise PlanError(
                "None of the allowed ways can be used: there is no TAESD, and no other way was allowed."
                + short_of_ram
            )
        raise PlanError(
            f"{size_text(free_bytes)} is not enough for {_size(work)}: the least that would do is "
            f"{size_text(least.peak_bytes, up=True)} ({least.describe()}). Free some memory, allow more ways, "
            "or choose a smaller picture." + short_of_ram
        )
    chosen = fitting[0]
    if chosen.route in ON_DEVICE:
        chosen = min((plan for plan in fitting if plan.route in ON_DEVICE), key=lambda plan: plan.seconds)
    if full is not None and chosen.route.exact and chosen.seconds > patience * full.seconds:
        chosen = next((plan for plan in fitting if not plan.route.exact), chosen)
    return replace(chosen, reason=_reason(chosen, work, free_bytes, full))


def _limit(work: Work, route: Route, free_bytes: int, cpu_free_bytes: int | None) -> int:
    if route is not Route.CPU or work.device.type == "cpu":
        return free_bytes
    return cpu_free_bytes if cpu_free_bytes is not None else 1 << 62


def _first_fit(work: Work, route: Route, limit: int, rates: Rates | None) -> Plan | None:
    """The fastest plan of the route that fits, found by bisection along each ladder."""
    fitting: list[Plan] = []
    for ladder in _ladders(work, route, rates):
        low, high, found = 0, len(ladder), None
        while low < high:
            middle = (low + high) // 2 if low else 0  # the first is the likeliest: most pictures fit
            plan = ladder[middle]()
            if plan.peak_bytes <= limit:
                found, high = plan, middle
            else:
                low = middle + 1
        if found is not None:
            fitting.append(found)  # large bands that recompute can be faster than tiny ones that do not
    return min(fitting, key=lambda plan: plan.seconds, default=None)


def smallest(work: Work, order: Sequence[Route] = DEFAULT_ORDER, rates: Rates | None = None) -> Plan | None:
    """The way that needs least memory on the device; None when none of the routes can be used."""
    plans = [plan for route in order for plan in candidates(work, route, rates) if plan.device == work.device]
    return min(plans, key=lambda plan: plan.peak_bytes, default=None)


def _reason(plan: Plan, work: Work, free_bytes: int, full: Plan | None) -> str:
    where = "of main memory" if plan.device != work.device else f"of {size_text(free_bytes)} free"
    text = f"{plan.describe()}: needs {size_text(plan.peak_bytes)} {where}"
    if plan.host_bytes:
        text += f" and {size_text(plan.host_bytes)} of main memory"
    if full is not None and plan.route is not Route.FULL and full.peak_bytes > free_bytes:
        text += f"; full would need {size_text(full.peak_bytes)}"
    return text


def _size(work: Work) -> str:
    height, width = work.pixels
    verb = "decoding" if work.operation == "decode" else "encoding"
    return f"{verb} {width}x{height} in {dtype_name(work.dtype)}"


# The floating-point types that a VAE may compute in, by their names.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
