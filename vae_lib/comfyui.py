"""Two nodes of ComfyUI: its own *VAE Decode* and *VAE Encode*, with VAE Guard in the place of the network.

The nodes run ComfyUI's own. Meanwhile the VAE object (``comfy.sd.VAE``) asks its memory manager for what our plan
takes, and our ladder decodes and encodes; sizes, devices, dtypes and what is done to the numbers around that stay
ComfyUI's. Where VAE Guard cannot stand in, ComfyUI's own decodes, and the report says why.

Imported by the ``__init__.py`` at the root, inside ComfyUI only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import nodes
from comfy import model_management
from comfy.utils import ProgressBar
from torch import Tensor

from vae_lib.decode import wording
from vae_lib.engine import Operation
from vae_lib.errors import Cancelled
from vae_lib.guard import borrow, frames
from vae_lib.guard.alone import Alone
from vae_lib.guard.seam import Halves, Own, Seam, attribute
from vae_lib.guard.whole_vae import WholeVAE
from vae_lib.planning import Preference, Route, Step
from vae_lib.planning.route import EXACT

AUTOMATIC = "Automatic"
GB = 10**9
_PACKAGES = ("comfy",)
_ASKED_BY = {Operation.DECODE: "memory_used_decode", Operation.ENCODE: "memory_used_encode"}


class Guarded(Alone):
    """One run of a node.

    Attributes:
        events: sentences, as ``say`` was given them.
        width, height: of the last picture, in pixels.
    """

    program = "ComfyUI's"

    def __init__(self, route: str, memory_limit: float) -> None:
        """``route`` is ``AUTOMATIC`` or the caption of one, ``memory_limit`` in GB, or 0 for what is free."""
        self.events: list[str] = []
        self.width = self.height = 0
        asked = next((each for each in EXACT if each.caption == route), None)
        super().__init__(
            EXACT if asked is None else _first(asked),
            int(memory_limit * GB) or None,
            self.events.append,
            progress=lambda done, total: ProgressBar(total).update_absolute(done),
            cancelled=model_management.processing_interrupted,
        )

    def report(self, operation: Operation) -> str:
        """What was done, in sentences."""
        said = list(dict.fromkeys(self.events))
        if self.outcome is not None and not self.outcome.fell_back:
            said.append(f"{operation.done} {self.width}x{self.height} {wording.summary(self.outcome)}.")
        return " ".join(text[0].upper() + text[1:] for text in said)


def _first(asked: Route) -> Preference:
    """One route, whatever is predicted of full's, and the others where it fails or does not fit."""
    others = tuple(route for route in EXACT if route is not asked)
    return Preference((Step((asked,), trusts_prediction=asked is not Route.FULL, asked=True), Step(others)))


@contextmanager
def guarding(vae: Any, guarded: Guarded) -> Iterator[None]:
    """While open, a ``comfy.sd.VAE`` decodes and encodes by us."""
    module = vae.first_stage_model
    has_frames = getattr(vae, "latent_dim", 2) == 3
    seam: Seam = WholeVAE(module, _PACKAGES) if has_frames else Halves(module, _PACKAGES)
    if module is None or not seam.is_supported():
        guarded.say("VAE Guard has no network for this VAE: ComfyUI's own is used.")
        yield
        return
    own = {operation: getattr(vae, name) for operation, name in _ASKED_BY.items()}
    asked: dict[Operation, tuple[Any, ...]] = {}

    def asking(operation: Operation) -> Callable[..., float]:
        def memory_used(shape: Any, dtype: Any) -> float:
            asked[operation] = (shape, dtype)
            return _least(own[operation](shape, dtype), guarded, seam, operation, vae.device, tuple(shape))

        return memory_used

    def stand_in(operation: Operation, hosts: Own) -> Own:
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            try:
                made = guarded.attempt(seam, operation, x)
            except Cancelled:
                model_management.throw_exception_if_processing_interrupted()
                raise
            if made is None:
                if operation in asked:  # the room that its own takes, which was not asked for
                    needed = own[operation](*asked[operation])
                    model_management.load_models_gpu([vae.patcher], memory_required=needed)
                return hosts(x, *args, **kwargs)
            picture = made if operation is Operation.DECODE else x
            guarded.height, guarded.width = picture.shape[-2:]
            return seam.given(operation, made, x)

        return run

    with ExitStack() as stack:
        for operation, name in _ASKED_BY.items():
            stack.enter_context(attribute(vae, name, asking(operation)))
        stack.enter_context(seam.standing_in(stand_in))
        yield


def _least(
    hosts: float, guarded: Guarded, seam: Seam, operation: Operation, device: Any, shape: tuple[int, ...]
) -> float:
    """Bytes to ask the memory manager for: ours, or its own for what is not for us. Never none: it divides by them."""
    try:
        ladder = guarded.ladder(seam, operation, device, frames.is_video_shape(shape))
        # of packed latents several lie along a side
        side = math.isqrt(shape[1] // ladder.vae.latent_channels) if ladder.vae else 1
        return max(1, min(borrow.need_bytes(ladder, operation, shape, side), hosts))
    except Exception:  # the decode will fail of the same, and then say so
        return hosts


class _Node:
    OPERATION: ClassVar[Operation]
    OWN: ClassVar[str]  # ComfyUI's node
    GIVEN: ClassVar[tuple[str, str]]  # name and type of its first input
    CATEGORY = "latent"
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        name, kind = cls.GIVEN
        routes = [AUTOMATIC, *(route.caption for route in EXACT)]
        return {
            "required": {
                name: (kind,),
                "vae": ("VAE",),
                "route": (
                    routes,
                    {
                        "default": AUTOMATIC,
                        "tooltip": "Automatic takes the fastest route that fits in the free memory. Another one is "
                        "taken first, and the rest where it fails. All give the same picture.",
                    },
                ),
                "memory_limit": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1024.0,
                        "step": 0.1,
                        "tooltip": "The most memory to use, in GB, without the weights. 0: what is free.",
                    },
                ),
            }
        }

    def run(self, vae: Any, route: str, memory_limit: float, **given: Any) -> tuple[Any, str]:
        guarded = Guarded(route, memory_limit)
        node = nodes.NODE_CLASS_MAPPINGS[self.OWN]()
        with guarding(vae, guarded):
            (result,) = getattr(node, node.FUNCTION)(vae=vae, **given)
        return result, guarded.report(self.OPERATION)


class DecodeNode(_Node):
    OPERATION = Operation.DECODE
    OWN = "VAEDecode"
    GIVEN = ("samples", "LATENT")
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "report")
    DESCRIPTION = "Decodes as VAE Decode does, in a fraction of the memory and without visible tiles."


class EncodeNode(_Node):
    OPERATION = Operation.ENCODE
    OWN = "VAEEncode"
    GIVEN = ("pixels", "IMAGE")
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    DESCRIPTION = "Encodes as VAE Encode does, in a fraction of the memory and without tiles."


NODE_CLASS_MAPPINGS = {"VAEGuardDecode": DecodeNode, "VAEGuardEncode": EncodeNode}
NODE_DISPLAY_NAME_MAPPINGS = {
    "VAEGuardDecode": "VAE Decode (Guard)",
    "VAEGuardEncode": "VAE Encode (Guard)",
}
