"""A generation of the host's, and the infotexts of its pictures, as our wrappers have them."""

from __future__ import annotations

from typing import Any

from vae_lib.guard.host import Points
from vae_lib.hosts import finishing
from vae_lib.hosts.patching import Function


def generation(points: Points, original: Function) -> Function:
    def process_images_inner(p: Any) -> Any:
        with points.generation(p):
            processed = original(p)
            first = processed.index_of_first_image
            points.completed(processed.infotexts[first:], processed.images[first:], processed.images[:first])
            return processed

    return process_images_inner


def infotext(points: Points, original: Function) -> Function:
    """A picture that is decoded again keeps the infotext that it had."""

    def create_infotext(p: Any, *args: Any, **kwargs: Any) -> Any:
        again = getattr(p, "vae_guard_again", None)
        kept = None if again is None else again.infotext(kwargs.get("index") or 0, finishing.vae_entries(p))
        return original(p, *args, **kwargs) if kept is None else kept

    return create_infotext
