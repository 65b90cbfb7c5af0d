"""Our decoder and encoder in place of the host's, for one call of one of its functions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from vae_lib.decode import Ladder, Outcome, wording
from vae_lib.device import is_out_of_memory, kinds
from vae_lib.engine import Operation
from vae_lib.errors import Cancelled, DeviceLost, InputError, NumericError, VAEGuardError
from vae_lib.guard import borrow, frames, policy, report
from vae_lib.guard.generation import Generations, Record
from vae_lib.guard.host import Host, HostVAE
from vae_lib.guard.notices import Notices, log
from vae_lib.guard.precision import Precision
from vae_lib.guard.seam import Own, Seam
from vae_lib.guard.settings import Settings
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.networks import frames_of
from vae_lib.planning import Preference


class Owner(Protocol):
    """Whose decode or encode it is (``Guard``)."""

    host: Host
    generations: Generations
    notices: Notices
    precision: Precision

    def settings(self) -> Settings: ...

    def ladder(
        self, vae: HostVAE, operation: Operation, device: torch.device, preference: Preference, is_video: bool = False
    ) -> Ladder: ...


class Forward:
    """Stands in at a VAE's seam; the host's own decode and encode are what it falls back to."""

    def __init__(self, owner: Owner, vae: HostVAE, seam: Seam, scaled: Tensor | None) -> None:
        """
        Args:
            scaled: the sampler's latents (B, C, h, w), or (B, C, T, h, w), that are being decoded.
        """
        self._owner, self._vae, self._seam = owner, vae, seam
        self._scaled = None if scaled is None or frames.is_video(scaled) else SamplerLatents(*frames.parts(scaled))
        self._module: Any = seam.module
        self._thread = threading.get_ident()
        self._has_failed = False

    def replacing(self, operation: Operation, hosts: Own) -> Own:
        """What stands in for the host's own decode or encode, ``hosts``."""

        def ours(x: Tensor, preference: Preference | None = None) -> Any:
            made = [self._run(operation, part, frames.is_video(x), preference) for part in frames.parts(x)]
            return self._seam.given(operation, frames.together(made, x), x)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread or self._has_failed:
                return hosts(x, *args, **kwargs)
            try:
                return ours(x)
            except (DeviceLost, Cancelled):  # nor can the host compute anything there, or is it wanted to
                raise
            except VAEGuardError as error:
                failure: BaseException = error
                if operation is Operation.DECODE and _is_of_the_numbers(error, x):
                    black = [self._not_a_number(str(error), part, frames.is_video(x)) for part in frames.parts(x)]
                    return self._seam.given(operation, frames.together(black, x), x)
            except Exception as error:
                failure = error
            details = report.text(failure, operation.value, tuple(x.shape), self._module)
            self._owner.notices.own_failure(f"{operation.value} the picture", failure, details)
            surprised = not isinstance(failure, VAEGuardError)
            del failure  # its traceback holds our tensors
            self._has_failed = True  # tiles that the host may cut the picture into are its own as well
            current = self._owner.generations.current
            if current is not None and operation is Operation.DECODE:
                current.fell_to_host = True
            self._owner.host.make_room_for_own(self._vae, operation, tuple(x.shape))
            try:
                return hosts(x, *args, **kwargs)
            except Exception as error:
                if not surprised or not is_out_of_memory(error):
                    raise
                try:  # our smaller routes, which an unexpected error of ours need not concern
                    result = ours(x, policy.SMALLER)
                except Exception as again:
                    log.warning("the smaller routes failed as well: %s", again)
                    raise error from None
                if current is not None:
                    current.fell_to_host = False
                return result

        return forward

    def _run(self, operation: Operation, x: Tensor, is_video: bool, preference: Preference | None = None) -> Tensor:
        current = self._owner.generations.current
        if preference is None:
            preference = policy.of(current, self._owner.settings(), operation, is_video)
        outcome = self._outcome(operation, x, is_video, preference)
        if outcome.repaired and outcome.plan.route.exact:
            self._owner.precision.remember(self._vae.identity(), outcome)
        record = Record(operation, outcome)
        is_repeated = current is not None and any(record.resembles(other) for other in current.records)
        if current is not None:
            current.records.append(record)
        if outcome.fell_back and not is_repeated:  # once for the pictures of a batch
            self._tell(operation, outcome, x, is_video)
        return outcome.result if operation is Operation.DECODE else self._as_moments(outcome)

    def _outcome(self, operation: Operation, x: Tensor, is_video: bool, preference: Preference) -> Outcome:
        ladder = self._owner.ladder(self._vae, operation, x.device, preference, is_video)
        decodes = operation is Operation.DECODE
        self._tell_of_tiling(operation)
        scaled = self._latents_of(x) if decodes and not is_video else None
        with without_autocast(x.device), _progress(self._owner.host, operation, ladder):
            return ladder.decode(VAELatents(x), scaled) if decodes else ladder.encode(x)

    def _tell_of_tiling(self, operation: Operation) -> None:
        if tiling := self._seam.replaced_by(operation):
            self._owner.notices.tell_once(
                f"tiling of {tiling}",
                f"{tiling} is switched on and would cut the picture into tiles that overlap; VAE Guard decodes in its "
                "place, exactly. Switch it off, or VAE Guard, if you want one of them alone.",
                warning=False,
            )

    def _latents_of(self, x: Tensor) -> SamplerLatents | None:
        """The sampler's latents of what is being decoded; None where they are not known."""
        if (latents := self._seam.latents(x)) is not None:
            return self._vae.space.for_diffusion(VAELatents(latents))
        if self._scaled is None or len(self._scaled) != len(x):
            return None
        sides = [side * self._vae.space.side for side in self._scaled.shape[-2:]]
        return self._scaled if sides == list(x.shape[-2:]) else None

    def _as_moments(self, outcome: Outcome) -> Tensor:
        if outcome.scaled:  # TAESD: a posterior without spread, around its latents
            space = self._vae.space
            mean = space.for_vae(space.of_taesd(outcome.result)).to(outcome.result.dtype)
            moments = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)  # (B, 2C, h, w)
        else:
            assert outcome.log_variance is not None
            moments = torch.cat([outcome.result, outcome.log_variance], dim=1)  # (B, 2C, h, w)
        # SD3 draws its random numbers in the order in which these lie in memory, so they lie as the host's.
        return moments.contiguous(memory_format=borrow.memory_format(self._module.encoder))

    def _tell(self, operation: Operation, outcome: Outcome, x: Tensor, is_video: bool) -> None:
        made = outcome.result if operation is Operation.DECODE else x
        height, width = made.shape[-2:]
        text, exact = wording.notice(outcome, operation, width, height, is_video), outcome.plan.route.exact
        current = self._owner.generations.current
        if not exact and operation is Operation.DECODE and current is not None:
            text = f"{text} {current.promise()}".rstrip()
        self._owner.notices.tell(text, warning=not exact)

    def _not_a_number(self, problem: str, x: Tensor, is_video: bool) -> Tensor:
        """NaN that no allowed dtype cures is left to the host; its own decode would only repeat it.

        Raises:
            Exception: the host's, or an InputError where it has none and nobody would look at a black picture.
        """
        current = self._owner.generations.current
        error = self._owner.host.numeric_error(problem)
        if error is None and current is not None and current.again is not None:
            error = InputError(problem)
        if error is not None:
            raise error from None
        self._owner.notices.tell(f"the {'video' if is_video else 'picture'} is black. {problem}", warning=True)
        if current is not None:
            current.is_black = True
        config = self._seam.network(Operation.DECODE, is_video).config
        height, width = (config.downscale * side for side in x.shape[2:])
        count = frames_of(config, len(x)) if is_video else len(x)
        return x.new_full((count, config.out_channels, height, width), torch.nan)  # (B, 3, H, W)


def _is_of_the_numbers(error: VAEGuardError, x: Tensor) -> bool:
    """Whether the latents are NaN or infinite, or the VAE made them so."""
    return isinstance(error, NumericError) or (isinstance(error, InputError) and not bool(torch.isfinite(x).all()))


def without_autocast(device: torch.device) -> Any:
    """Our engine sets its dtypes itself; SDXL and SD3 are called within autocast."""
    try:
        return torch.autocast(kinds.of(device).name, enabled=False)
    except (RuntimeError, ValueError):  # this device has no autocast in this version of PyTorch
        return nullcontext()


@contextmanager
def _progress(host: Host, operation: Operation, ladder: Ladder) -> Iterator[None]:
    """Show the bands done in the page's progress bar."""
    before = host.progress_text()

    def show(done: int, total: int) -> None:
        host.show_progress_text(f"VAE Guard: {operation.doing}, {done} of {total} bands")

    ladder.progress = show
    try:
        yield
    finally:
        host.show_progress_text(before)
