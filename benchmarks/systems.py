"""The systems that are compared: ours by each route, and the peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Decode, Missing
from vae_lib.decode import Ladder
from vae_lib.device import free_bytes
from vae_lib.latents import VAELatents
from vae_lib.networks import Network, WanVAE
from vae_lib.planning import Plan, Planner, Route


@dataclass(frozen=True)
class Place:
    """Where a system decodes; ``free`` gives the bytes that it may allocate there."""

    device: torch.device
    dtype: torch.dtype
    free: Callable[[torch.device], int] = free_bytes


Builder = Callable[[Network, Tensor, Place], Decode]


def plain(vae: Network, latents: Tensor, place: Place) -> Decode:
    """The network as it is written, picture by picture: what the others' pictures are compared with, in float32."""
    vae.to(place.device, place.dtype)
    return lambda z: torch.cat([vae.decode(picture) for picture in z.split(1)])


def _automatic(vae: Network, latents: Tensor, place: Place) -> Decode:
    """What the extension does: the fastest exact way that fits into what is free."""
    vae.to(place.device, place.dtype)
    order = (Route.FULL, Route.TILED, Route.OFFLOAD)
    ladder = Ladder(vae, device=place.device, dtype=place.dtype, order=order, planner=Planner(place.free))
    return lambda z: ladder.decode(VAELatents(z)).result


def _ours(route: Route, smallest: bool) -> Builder:
    """One route: in the way that is fastest, or that takes the least memory."""

    def build(vae: Network, latents: Tensor, place: Place) -> Decode:
        vae.to(place.device, place.dtype)
        batch, _, height, width = latents.shape
        work = Ladder(vae, device=place.device, dtype=place.dtype).work("decode", height, width, batch)

        def wanted(plan: Plan) -> float:
            return plan.peak_bytes if smallest else plan.seconds

        return by_plan(vae, place, min(Planner().candidates(work, route), key=wanted))

    return build


def by_plan(vae: Network, place: Place, plan: Plan, **options: Any) -> Decode:
    """Decode by one plan, the fastest that its peak allows; ``options`` are the ladder's others."""

    def budget(device: torch.device) -> int:
        """Main memory is not what the plan's peak is about: more may be offloaded to it than lies on the device."""
        return plan.peak_bytes if device.type == place.device.type else free_bytes(device)

    ladder = Ladder(
        vae,
        device=place.device,
        dtype=place.dtype,
        order=(plan.route,),
        planner=Planner(budget),
        **options,
    )
    return lambda z: ladder.decode(VAELatents(z)).result


def _peer(build: Callable[..., Decode], *arguments: object) -> Builder:
    return lambda vae, latents, place: build(vae, place.device, place.dtype, *arguments)


def _last_taps(vae: Network, latents: Tensor, place: Place) -> Decode:
    if not isinstance(vae, WanVAE):
        raise Missing("only Wan's network has frames")
    return plain(vae, latents, place)


AUTOMATIC = "ours, automatic"
SYSTEMS: dict[str, Builder] = {
    "diffusers full": _peer(peers.diffusers, "full"),
    "diffusers sliced": _peer(peers.diffusers, "sliced"),
    "diffusers tiled": _peer(peers.diffusers, "tiled"),
    "last taps only": _last_taps,
    "ldm full": _peer(peers.ldm),
    "three tiled passes": _peer(peers.three_passes),
    "ComfyUI tiled": _peer(peers.comfyui),
    "Tiled VAE": _peer(peers.tiled_vae, False),
    "Tiled VAE, fast": _peer(peers.tiled_vae, True),
    "ours full": _ours(Route.FULL, False),
    "ours tiled": _ours(Route.TILED, False),
    "ours tiled, smallest": _ours(Route.TILED, True),
    "ours offload": _ours(Route.OFFLOAD, False),
    "ours offload, smallest": _ours(Route.OFFLOAD, True),
    AUTOMATIC: _automatic,
}
