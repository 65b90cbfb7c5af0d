"""The plans of each route for one decode or encode, and what each needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vae_lib.device import kinds, transfers
from vae_lib.device.memory import largest_block
from vae_lib.engine import programs
from vae_lib.engine.compute import Compute, Operation
from vae_lib.engine.passes import MapSize, Tiling
from vae_lib.engine.programs import taesd as tiny
from vae_lib.errors import PlanError
from vae_lib.networks import TAESD, Architecture, Network, build
from vae_lib.planning.cost import estimate, estimate_plain
from vae_lib.planning.profile import Profile, Profiles
from vae_lib.planning.route import Objection, Route
from vae_lib.planning.work import Cost, Work

MIB = 1 << 20
LAST_FEW = 4  # smallest bands of a ladder, among which the least peak is: tiny ones can take more for their halos
UNLIMITED = 1 << 62  # bytes
WHOLE = 1 << 50  # larger than any activation: the picture is one band
PLAIN_ROOM = 1.15  # for what PyTorch's kernels take beside their results and what is counted of that


@dataclass(frozen=True)
class Plan:
    """One route with its sizes.

    Attributes:
        route: which of the routes.
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
        why: what spoke against the routes that are preferred to it.
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
        if not self.route.exact:
            return f"TAESD in {self.tile * TAESD.downscale}-pixel tiles" if self.bands > 1 else "TAESD"
        name = self.how if self.route.elsewhere else self.route.label
        if self.is_plain:
            return f"{name} (plain network)"
        return name if self.is_whole else f"{name} in {self.band_rows}-row bands"

    @property
    def how(self) -> str:
        """At the end of a sentence: "in full", "on the CPU"."""
        return f"on {self.device}" if self.is_on_spare_card else self.route.row.how

    def fits(self, free: int) -> bool:
        """Into so many bytes, and its largest array into what the device allocates at once."""
        most = largest_block(self.device)
        return self.peak_bytes <= free and (most is None or self.largest_bytes <= most)

    @property
    def is_plain(self) -> bool:
        """Whether it is PyTorch's own decode."""
        return self.tiling is None and self.route.exact

    @property
    def is_on_spare_card(self) -> bool:
        """Whether it computes elsewhere, and not on the CPU."""
        return self.route.elsewhere and not kinds.of(self.device).in_main_memory

    @property
    def is_whole(self) -> bool:
        """Whether the picture is one band."""
        return self.tiling is not None and self.tiling.band_bytes >= WHOLE


@functools.lru_cache(maxsize=16)
def _skeleton(config: Architecture) -> Network:
    """The network without weights; predictions need only its shape."""
    with torch.device("meta"):
        return build(config)


@functools.lru_cache(maxsize=8)
def _tiny(latent_channels: int, video: bool, operation: Operation) -> tuple[TAESD, int, int] | None:
    """The network, latents that a tile reads beyond it, and multiplications for a latent; None without that half."""
    with torch.device("meta"):
        taesd = TAESD(latent_channels, video=video)
    if getattr(taesd, operation.half) is None:
        return None
    decodes = operation is Operation.DECODE
    reach = taesd.decoder_reach if decodes else -(-taesd.encoder_reach // TAESD.downscale)
    return taesd, reach, tiny.multiplications(taesd)


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
    return estimate(_skeleton(work.config), shape, tiling, _compute(work), resident=work.resident, decodes=decodes)


@functools.lru_cache(maxsize=256)
def plain_cost_of(work: Work) -> Cost:
    """The same of the plain network, picture by picture, with its weights on the device."""
    assert work.config is not None
    shape = _input_shape(work)
    return estimate_plain(_skeleton(work.config), shape, _compute(work), decodes=work.operation is Operation.DECODE)


def _band_sizes(work: Work, route: Route) -> Sequence[int]:
    """Band sizes worth trying, largest first: up to the whole picture on a GPU, to stay in the cache on a CPU.

    Bands of less than four rows cost much time, for the halo, and save memory only if the rows are very long. A video's
    are of whole rows of latents: less would only ask for more operations, of which there are millions.
    """
    assert work.config is not None
    if kinds.of(work.device).in_main_memory:
        return _halved(16 * MIB, work, 1 if route is Route.FULL else None)
    if work.config.taps > 1:  # of whole frames so much would be kept that the host's own decode takes little more
        return _halved(32 * MIB, work, 2 if route is Route.FULL else None)
    if route is Route.FULL:
        return [WHOLE, *_halved(1024 * MIB, work, 5)]
    if route is Route.OFFLOAD:
        return _halved(32 * MIB, work)  # several bands, even of a small picture: one is copied beside another
    return _halved(256 * MIB, work)


def _halved(largest: int, work: Work, count: int | None = None) -> list[int]:
    assert work.config is not None
    height, width = work.pixels
    row = width * work.config.outer_channels * 2 * work.dtype.itemsize
    smallest = max(32 << 10, min(MIB, 4 * row) if work.config.taps == 1 else work.downscale * row)
    sizes = [largest >> i for i in range(14) if i == 0 or largest >> i >= smallest][:count]
    return [size for size in sizes if size < 2 * height * row] or sizes[-1:]  # larger ones would be no others


def _tilings(work: Work, route: Route) -> list[list[Tiling]]:
    """The tilings of a route: for each amount of recomputing, from the fastest and largest down."""
    sizes = _band_sizes(work, route)
    # computing again also saves copies, but a CPU has no copies to save
    apart = route is Route.OFFLOAD and transfers.kind_for(work.device) is not None
    assert work.config is not None
    recomputes = programs.of(_skeleton(work.config)).RECOMPUTES
    most = 2 if recomputes and (route is Route.TILED or apart) else 0
    return [
        [Tiling(size, recompute, route is Route.OFFLOAD, min(64 * MIB, max(MIB, 4 * size))) for size in sizes]
        for recompute in range(most + 1)
    ]


def ladders(work: Work, route: Route, profiles: Profiles) -> list[list[Callable[[], Plan]]]:
    """Plans of a route still to be costed, in sequences along which the peak falls (but for the last few, tiny, bands).

    Empty where the route cannot be taken, whatever the memory.
    """
    match route:
        case Route.FULL:
            made = _in_bands(work, route, profiles)
            is_video = work.config is not None and work.config.taps > 1  # of which the plain network knows nothing
            if profiles(work).plain > 0 and work.resident and work.padding.is_zeros and not is_video:
                made.append([functools.partial(_costed_plain, work, profiles(work))])
            return made
        case Route.TILED | Route.OFFLOAD:
            return _in_bands(work, route, profiles)
        case Route.CPU:
            there = _on_the_spare(work)
            return [
                *_in_bands(there, Route.FULL, profiles, route),
                *_in_bands(there, Route.TILED, profiles, route),
            ]
        case Route.TAESD:
            plans = _tiny_candidates(work, profiles(work)) if work.taesd else ()
            return [[functools.partial(lambda plan: plan, plan) for plan in plans]]


def _on_the_spare(work: Work) -> Work:
    """The work on the other device, to which the weights go layer by layer."""
    if work.device == work.spare:
        return work
    there = kinds.of(work.spare)
    dtype = there.usual_dtype if there.in_main_memory else work.dtype
    return replace(work, device=work.spare, dtype=dtype, resident=False, output_on_device=True)


def _in_bands(
    work: Work, bands_of: Route, profiles: Profiles, route: Route | None = None
) -> list[list[Callable[[], Plan]]]:
    """Plans with the bands of one route, which are another's by name if that computes in the same bands elsewhere."""
    if work.config is None:
        return []
    profile = profiles(work)
    if bands_of in profile.distrusted:
        return []
    return [
        [functools.partial(_costed, work, route or bands_of, tiling, profile) for tiling in ladder]
        for ladder in _tilings(work, bands_of)
    ]


def _costed_plain(work: Work, profile: Profile) -> Plan:
    cost = plain_cost_of(work)
    return Plan(
        Route.FULL, work.device, work.dtype, None, 0, round(PLAIN_ROOM * cost.peak_bytes),
        profile.plain_seconds(cost), work.pixels[0], work.batch, largest_bytes=cost.largest_bytes,
    )  # fmt: skip


def _costed(work: Work, route: Route, tiling: Tiling, profile: Profile) -> Plan:
    assert work.config is not None
    cost = cost_of(work, tiling)
    level = MapSize(*work.pixels, work.config.outer_channels)
    rows = min(tiling.rows(level, work.dtype), level.height)
    kind = transfers.kind_for(work.device)
    host = 0 if kind is None else cost.host_bytes
    return Plan(
        route, work.device, work.dtype, tiling, 0, cost.peak_bytes, profile.seconds(cost), rows, cost.bands,
        host, cost.largest_bytes,
    )  # fmt: skip


def _tiny_candidates(work: Work, profile: Profile) -> Iterator[Plan]:
    speeds = profile.speeds
    height, width = work.height, work.width
    known = _tiny(work.latent_channels, work.video, work.operation)
    if known is None:
        return
    taesd, reach, per_latent = known
    largest = max(height, width)
    for side in (largest, *(s for s in (256, 128, 64, 32, 16, 8) if s < largest)):
        grid = tiny.Grid(height, width, side, reach, work.padding)
        peak = tiny.peak_bytes(grid, work.dtype, taesd)
        result = 3 * 64 if work.operation is Operation.DECODE else work.latent_channels
        out = work.batch * height * width * result * work.dtype.itemsize * work.output_on_device
        count = -(-height // side) * -(-width // side)
        work_done = work.batch * grid.area * per_latent
        seconds = work_done / speeds.plain_multiplications + work.batch * count * 100 * speeds.dispatch_seconds
        yield Plan(
            Route.TAESD, work.device, work.dtype, None, side, peak + out, seconds,
            min(side, height) * TAESD.downscale, work.batch * count,
            largest_bytes=max(out, tiny.map_bytes(grid, work.dtype, margin=1)),
        )  # fmt: skip
