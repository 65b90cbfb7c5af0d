"""Decode or encode by the best plan that fits, and by the next one when it still fails: the one loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vae_lib.decode import wording
from vae_lib.decode.outcome import Outcome
from vae_lib.device import dtype_name, kinds
from vae_lib.device.failures import Answer, Failure, answer, judge
from vae_lib.device.memory import give_back_ram, keeps_freed_memory, release_cached
from vae_lib.engine import batch as engine
from vae_lib.engine import plain
from vae_lib.engine.compute import Compute, Operation, Progress
from vae_lib.engine.padding import Padding
from vae_lib.engine.programs import taesd as tiny
from vae_lib.errors import DeviceLost, InputError, NumericError, PlanError, printable
from vae_lib.latents import SamplerLatents, VAELatents
from vae_lib.networks import TAESD, Network
from vae_lib.planning import DEFAULT_ORDER, Outlook, Plan, Planner, Preference, Route, Work
from vae_lib.planning.events import Attempt, MaybeOutOfMemory, NoScratch, OutOfMemory, Overflow
from vae_lib.planning.search import Exhausted, Search

_FAILURES = {OutOfMemory: Failure.OUT_OF_MEMORY, MaybeOutOfMemory: Failure.MAYBE_OUT_OF_MEMORY}


@dataclass
class Ladder:
    """The routes down from the full decode, for one VAE.

    Attributes:
        vae: the full VAE, wherever its weights are; None to use TAESD only.
        taesd: the tiny one, if there is one.
        device, dtype: where and in which floating-point type to compute.
        order: routes allowed, the preferred first; or steps of them.
        planner: asked before each attempt.
        spare: where the routes compute that do so elsewhere.
        repair: dtypes to compute in again when numbers overflow, in order. Half precision overflows in some VAEs.
        wrap: what the convolutions find beyond the picture's edges; True for seamless textures.
        check_finite: look for NaN and infinity in the result.
    """

    vae: Network | None
    taesd: TAESD | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    order: Sequence[Route] | Preference = DEFAULT_ORDER
    planner: Planner = field(default_factory=Planner)
    spare: torch.device = field(default_factory=lambda: torch.device("cpu"))
    repair: Sequence[torch.dtype] = (torch.float32,)
    wrap: Padding | bool = False
    check_finite: bool = True
    output_device: torch.device | None = None
    progress: Progress | None = None
    cancelled: Callable[[], bool] | None = None

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return TAESD.downscale if self.vae is None else self.vae.downscale

    def decode(self, latents: VAELatents | None, scaled: SamplerLatents | None = None) -> Outcome:
        """Pictures of latents, each (B, C, h, w).

        Args:
            latents: as the VAE takes them; None where there is only TAESD.
            scaled: the same as the sampler left them, which TAESD takes; None: TAESD is not used.

        Raises:
            PlanError: when nothing fits, or all that did failed.
            DeviceLost: when the device does not answer any more.
            NumericError: when no allowed dtype holds the numbers.
            InputError: when the latents have the wrong number of channels, or are not finite.
            Cancelled: when the caller's ``cancelled`` says so.
        """
        unpacked = None if self.taesd is None or scaled is None else self.taesd.unpacked(scaled)
        tensor = unpacked if latents is None or self.vae is None else latents
        if tensor is None:
            raise InputError("There are no latents here that this network takes.")
        ladder = self if unpacked is not None else replace(self, taesd=None)
        return ladder._run(Operation.DECODE, tensor, unpacked)

    def encode(self, images: Tensor) -> Outcome:
        """Latents of pictures (B, 3, H, W) in [-1, 1]; raises as `decode`."""
        return self._run(Operation.ENCODE, images, images)

    def work(self, operation: Operation | str, height: int, width: int, batch: int) -> Work:
        """The work as the planner sees it; ``operation`` may be its name, ``height`` and ``width`` are in latents."""
        operation = Operation(operation)
        taesd = self.taesd is not None and getattr(self.taesd, operation.half) is not None
        channels = self.vae.latent_channels if self.vae else self.taesd.latent_channels if self.taesd else 4
        return Work(
            None if self.vae is None else self.vae.config, operation, height, width, batch, self.device, self.dtype,
            Padding.of(self.wrap), self._is_resident(self.dtype),
            (self.output_device or self.device) == self.device, taesd, channels,
            self.taesd is not None and self.taesd.video, spare=self.spare,
        )  # fmt: skip

    def outlook(self, work: Work) -> Outlook:
        """What would be done with it now."""
        return Outlook(self.planner, work, self.order)

    def need_bytes(self, operation: Operation, height: int, width: int, batch: int) -> int:
        """What it would take on the device now, of weights that are there; ``height`` and ``width`` are in latents.

        None at all where it would be computed elsewhere, and the least that there is where nothing fits.
        """
        work = replace(self.work(operation, height, width, batch), resident=True)
        plan = self.outlook(work).chosen or self.planner.smallest(work, Preference.of(self.order).routes)
        return plan.peak_bytes if plan is not None and plan.device == self.device else 0

    def _run(self, operation: Operation, tensor: Tensor, for_taesd: Tensor | None) -> Outcome:
        self._check_channels(operation, tensor)
        batch, _, height, width = tensor.shape
        if operation is Operation.ENCODE:
            scale = self.downscale
            height, width = height // scale, width // scale
        work = self.work(operation, height, width, batch)
        if operation is Operation.ENCODE:
            work = replace(work, picture=(tensor.shape[2], tensor.shape[3]))
        handled = sys.exc_info()[1]  # Forge calls for its tiles while it handles an error of the first try
        search = Search(work, Preference.of(self.order), self.planner, self.repair)
        while True:
            try:
                plan = search.next_plan()
            except Exhausted as error:
                raise PlanError(wording.exhausted(error.attempts, str(error))) from None
            result = self._try(plan, operation, tensor, for_taesd, handled)
            if self._answer(result, plan, repeated=False) is Answer.SAME_PLAN:
                release_cached(plan.device)  # it may have been there, but in pieces
                result = self._try(plan, operation, tensor, for_taesd, handled)
            if isinstance(result, Outcome):
                give_back_ram(plan.peak_bytes if kinds.of(plan.device).in_main_memory else plan.host_bytes)
                return replace(result, events=search.events_for(plan))
            release_cached(plan.device)
            if isinstance(result, Overflow) and not (search.can_repair(plan) and torch.isfinite(tensor).all()):
                self._blame(operation, tensor, plan)
            if self._answer(result, plan, search.has_failed(type(result))) is Answer.HAND_OVER:
                raise PlanError(
                    f"{plan.describe()} failed, and a smaller attempt before it, too: {wording.problem(result)}."
                )
            search.failed(result, self._is_resident)

    def _is_resident(self, dtype: torch.dtype) -> bool:
        return self.vae is None or self.vae.lies_on(self.device, dtype)

    def _answer(self, result: Outcome | Attempt, plan: Plan, repeated: bool) -> Answer | None:
        """What to do about an attempt that ran out of memory; None where it did not."""
        failure = _FAILURES.get(type(result))
        return None if failure is None else answer(failure, repeated, keeps_freed_memory(plan.device))

    def _try(
        self,
        plan: Plan,
        operation: Operation,
        tensor: Tensor,
        for_taesd: Tensor | None,
        handled: BaseException | None,
    ) -> Outcome | Attempt:
        """Only expected failures come back as such; nothing of a failed try stays alive."""
        started = time.perf_counter()
        try:
            outcome = self._execute(plan, operation, tensor, for_taesd)
            if self._is_finite(outcome):
                return replace(outcome, seconds=time.perf_counter() - started)
            return Overflow(plan)
        except PlanError as error:  # no space for the scratch file
            return NoScratch(plan, str(error))
        except Exception as error:
            failure = judge(error, handled)
            if failure is Failure.OUT_OF_MEMORY:
                return OutOfMemory(plan)
            if failure is Failure.MAYBE_OUT_OF_MEMORY:
                return MaybeOutOfMemory(plan, printable(str(error).splitlines()[0])[:200])
            if failure is Failure.DEVICE_LOST:
                raise DeviceLost(
                    f"The device {plan.device} does not answer any more ({str(error).splitlines()[0]}). Nothing can be "
                    "computed on it until the program is started again."
                ) from error
            raise

    def _execute(self, plan: Plan, operation: Operation, tensor: Tensor, for_taesd: Tensor | None) -> Outcome:
        compute = Compute(
            plan.device,
            plan.dtype,
            Padding.of(self.wrap),
            plan.device if plan.route.elsewhere else self.output_device or self.device,
            self.progress,
            self.cancelled,
        )
        if not plan.route.exact:
            assert self.taesd is not None
            assert for_taesd is not None
            run = tiny.decode if operation is Operation.DECODE else tiny.encode
            result = run(self.taesd, for_taesd, plan.tile, compute)
            return Outcome(result, plan, 0.0, scaled=operation is Operation.ENCODE)
        assert self.vae is not None
        if plan.tiling is None:
            result, log_variance = plain.run(self.vae, operation, tensor, compute)
        elif operation is Operation.DECODE:
            result, log_variance = engine.decode(self.vae, tensor, plan.tiling, compute), None
        else:
            result, log_variance = engine.encode_moments(self.vae, tensor, plan.tiling, compute)
        if plan.route.elsewhere:
            result = self._brought(result)
            log_variance = None if log_variance is None else log_variance.to(result.device)
        return Outcome(result, plan, 0.0, log_variance=log_variance)

    def _brought(self, result: Tensor) -> Tensor:
        """What another device made, to where it is wanted; it stays where it is if there is no memory for it there."""
        try:
            return result.to(self.output_device or self.device)
        except Exception as error:
            if judge(error) is not Failure.OUT_OF_MEMORY:
                raise
            return result

    def _is_finite(self, outcome: Outcome) -> bool:
        results = [outcome.result] if outcome.log_variance is None else [outcome.result, outcome.log_variance]
        return not self.check_finite or all(bool(torch.isfinite(item).all()) for result in results for item in result)

    def _check_channels(self, operation: Operation, tensor: Tensor) -> None:
        if tensor.ndim != 4:
            raise InputError(f"A tensor of four dimensions is needed; this one has shape {tuple(tensor.shape)}.")
        least = (1, 1, 1) if operation is Operation.DECODE else (1, *[self.downscale] * 2)
        if any(side < lowest for side, lowest in zip((len(tensor), *tensor.shape[2:]), least, strict=True)):
            raise InputError(
                f"There is nothing to {operation.value} in a tensor of shape {tuple(tensor.shape)}: it must be at "
                f"least (1, {tensor.shape[1]}, {least[1]}, {least[2]})."
            )
        if operation is Operation.DECODE:
            wanted = self.vae.latent_channels if self.vae else self.taesd.latent_channels if self.taesd else 4
            if tensor.shape[1] != wanted:
                raise InputError(
                    f"These latents have {tensor.shape[1]} channels and this VAE takes {wanted}: they belong to "
                    f"{'an SD3 or FLUX.1' if tensor.shape[1] == 16 else 'another'} model. Choose that model's VAE."
                )
        else:
            wanted = self.vae.config.in_channels if self.vae else 3
            if tensor.shape[1] != wanted:
                raise InputError(f"A picture of {wanted} channels is needed; this one has {tensor.shape[1]}.")

    def _blame(self, operation: Operation, tensor: Tensor, plan: Plan) -> None:
        if not torch.isfinite(tensor).all():
            if operation is Operation.ENCODE:
                raise InputError("The picture holds NaN or infinite numbers; nothing can be encoded from it.")
            raise InputError(
                "The latents hold NaN or infinite numbers: the diffusion model (UNet) failed, not the VAE. "
                "Sample again, in full precision (--no-half) if it recurs."
            )
        if plan.dtype == torch.float32:
            raise NumericError(
                "The VAE gave NaN or infinite numbers even in fp32: its file is damaged, or no VAE for this model. "
                "Choose another one."
            )
        raise NumericError(
            f"The VAE gave NaN or infinite numbers in {dtype_name(plan.dtype)}, and no wider type was allowed. "
            "Allow fp32, or use a VAE made for half precision (for SDXL: sdxl-vae-fp16-fix)."
        )
