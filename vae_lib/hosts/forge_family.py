"""What Forge and the forks that share its VAE object and memory manager do alike."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from modules_forge import main_thread

from vae_lib.engine import Operation
from vae_lib.guard.host import TELLS_MORE, Need, Points
from vae_lib.hosts import forge_memory, page
from vae_lib.hosts.a1111_family import A1111Family
from vae_lib.hosts.patching import Function


class ForgeFamily(A1111Family):
    """Implements what does not differ between them; a ``HostVAE`` of theirs has its VAE object as ``owner``.

    Attributes:
        vae_class: of the VAE object.
        management: the module of the memory manager.
    """

    vae_class: ClassVar[Any]
    management: ClassVar[Any]

    def wrap(self, points: Points) -> None:
        """Built-in extensions (inpaint, tile and reference preprocessors) call the VAE object themselves.

        The page's generations run in the main thread, where gradio knows of no page.
        """
        super().wrap(points)
        self._patches.patch(main_thread, "run_and_wait_result", _carrying_the_page)
        for name in ("decode", "encode"):
            self._patches.patch(self.vae_class, name, functools.partial(forge_memory.guarded, points))

    def reserving(self, vae: Any, need: Need) -> AbstractContextManager[object]:
        return forge_memory.reserving(self.management, vae.owner, need)

    def make_room_for_own(self, vae: Any, operation: Operation, shape: tuple[int, ...]) -> None:
        if operation is Operation.DECODE:  # the VAE object is given the sampler's latents
            shape = (*shape[:2], *(side // vae.space.side for side in shape[2:]))
        forge_memory.make_room_for_own(self.management, vae.owner, operation, shape)

    def device(self) -> torch.device:
        """The VAE's, which an argument may have put elsewhere."""
        return torch.device(self.management.vae_device())

    def gpu_call(self, function: Function, extra_outputs: list[Any]) -> Function:
        """In the thread that does all generations of the page."""

        def in_main_thread(*args: Any) -> Any:
            return main_thread.run_and_wait_result(function, *args)

        return super().gpu_call(in_main_thread, extra_outputs)


def _carrying_the_page(original: Function) -> Function:
    """The way to the main thread, and back for an error that says where the latents are: reForge and Forge Classic drop
    errors there, and the page shows what comes of that, a TypeError.
    """

    def run_and_wait_result(func: Function, *args: Any, **kwargs: Any) -> Any:
        failures: list[Exception] = []

        def work(*args: Any, **kwargs: Any) -> Any:
            try:
                return func(*args, **kwargs)
            except Exception as error:
                if hasattr(error, TELLS_MORE):
                    failures.append(error)
                raise

        result = original(page.carried(work), *args, **kwargs)
        if failures:
            raise failures[0]
        return result

    return run_and_wait_result
