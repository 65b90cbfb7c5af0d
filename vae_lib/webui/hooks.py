"""The hook: every decode and encode of a picture goes through our engine, on the loaded VAE's own tensors.

The host's functions that decode or encode a *picture* are wrapped. Inside them, and only in their thread, the
``forward`` of the VAE's decoder and encoder is ours. So all the rest stays the host's own: scaling and its inverse
for every family, the sampling of the posterior (same random numbers), ``--lowvram``'s moves, the choice of TAESD in
the settings. Live previews call other functions, or do so in other threads: they are not touched. Whatever goes wrong
in our code ends in the host's own forward, so the picture comes out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vae_lib.decode import Compute, Ladder, Operation, Outcome, Route, trusted_rates
from vae_lib.errors import InputError, NumericError, PlanError, VAEGuardError
from vae_lib.webui import (
    first_stage,
    generation,
    infotext,
    kept,
    memory,
    notices,
    options,
    patching,
    policy,
    precision,
    report,
)
from vae_lib.webui.request import Request

Wrapper = Callable[..., Any]


def install() -> None:
    """Patch the host."""
    from modules import processing, sd_samplers_common

    patching.patch(processing, "process_images_inner", _process_images_inner)
    patching.patch(processing, "decode_latent_batch", _decode_latent_batch)
    for owner in (processing, sd_samplers_common):
        patching.patch(owner, "decode_first_stage", _decode_first_stage)
        patching.patch(owner, "images_tensor_to_samples", _images_tensor_to_samples)
    patching.patch(processing.sd_samplers, "sample_to_image", _sample_to_image)
    conditioned = processing.StableDiffusionProcessing
    for name in ("inpainting_image_conditioning", "edit_image_conditioning"):
        patching.patch(conditioned, name, _image_conditioning)


undo_all = patching.undo_all


def _process_images_inner(original: Wrapper) -> Wrapper:
    def process_images_inner(p: Any) -> Any:
        with generation.running(p, getattr(p, "vae_guard", None) or Request()):
            return original(p)

    return process_images_inner


def _decode_latent_batch(original: Wrapper) -> Wrapper:
    def decode_latent_batch(model: Any, batch: Tensor, *args: Any, **kwargs: Any) -> Any:
        current = generation.current()
        if current is None:
            return original(model, batch, *args, **kwargs)
        held = kept.hold(current, model, batch)
        start = len(current.records)
        try:
            samples = original(model, batch, *args, **kwargs)
        except Exception as error:
            if told := kept.failed(held):  # the type stays: callers look at it
                error.args = (f"{error} VAE Guard: {told}", *error.args[1:])
            raise
        infotext.write(current, current.records[start:])
        kept.finished(held, current, current.records[start:])
        return samples

    return decode_latent_batch


def _decode_first_stage(original: Wrapper) -> Wrapper:
    def decode_first_stage(model: Any, x: Tensor) -> Any:
        with guarding(model, scaled=x):
            return original(model, x)

    return decode_first_stage


def _images_tensor_to_samples(original: Wrapper) -> Wrapper:
    def images_tensor_to_samples(image: Tensor, approximation: Any = None, model: Any = None) -> Any:
        with guarding(model):
            return original(image, approximation, model)

    return images_tensor_to_samples


def _sample_to_image(original: Wrapper) -> Wrapper:
    """The picture before hires fix, which the host saves if it is told to; live previews do not ask for "Full"."""

    def sample_to_image(samples: Tensor, index: int = 0, approximation: Any = None) -> Any:
        if approximation != 0 or generation.current() is None:
            return original(samples, index, approximation)
        with guarding(scaled=samples[index : index + 1]):
            return original(samples, index, approximation)

    return sample_to_image


def _image_conditioning(original: Wrapper) -> Wrapper:
    def image_conditioning(self: Any, *args: Any, **kwargs: Any) -> Any:
        with guarding(self.sd_model):
            return original(self, *args, **kwargs)

    return image_conditioning


@contextmanager
def guarding(model: Any = None, scaled: Tensor | None = None) -> Iterator[None]:
    """While this is open, the VAE of ``model`` (by default the loaded one) decodes and encodes in this thread by us.

    Args:
        scaled: the sampler's latents that are being decoded, which TAESD would take.
    """
    from modules import shared

    model = shared.sd_model if model is None else model
    vae: Any = getattr(model, "first_stage_model", None)
    if not _is_supported(vae) or getattr(vae, "_vae_guard_thread", None) == threading.get_ident():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(_attribute(vae, "_vae_guard_thread", threading.get_ident()))
        guard = Guard(model, vae, scaled)
        stack.enter_context(
            _attribute(vae.decoder, "forward", guard.forward(Operation.DECODE, vae.decoder.forward))
        )
        stack.enter_context(
            _attribute(vae.encoder, "forward", guard.forward(Operation.ENCODE, vae.encoder.forward))
        )
        if isinstance(getattr(vae, "quant_conv", None), nn.Module):
            stack.enter_context(
                _attribute(vae.quant_conv, "forward", guard.quant_conv(vae.quant_conv.forward))
            )
        yield


def _is_supported(vae: Any) -> bool:
    return isinstance(vae, nn.Module) and all(
        isinstance(getattr(vae, half, None), nn.Module) for half in ("encoder", "decoder")
    )


@contextmanager
def _attribute(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of this instance, and put back what was there."""
    missing = object()
    before = module.__dict__.get(name, missing)
    object.__setattr__(module, name, value)
    try:
        yield
    finally:
        if before is missing:
            module.__dict__.pop(name, None)
        else:
            object.__setattr__(module, name, before)


@dataclass
class Guard:
    """Our decoder and encoder in place of the host's, for one call of one of its functions.

    Attributes:
        moments: the last encode's result: ``quant_conv`` is in it already, so the host's must not be applied.
    """

    model: Any
    vae: Any
    scaled: Tensor | None
    thread: int = field(default_factory=threading.get_ident)
    moments: Tensor | None = None

    def forward(self, operation: Operation, host: Wrapper) -> Wrapper:
        """The replacement of the decoder's or encoder's ``forward``; ``host`` is what it replaces."""

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self.thread:
                return host(x, *args, **kwargs)
            try:
                return self._run(operation, x)
            except VAEGuardError as error:
                failure: BaseException = error
                self._raise_if_the_numbers_are_to_blame(error, operation, x)
            except Exception as error:
                failure = error
            details = report.text(failure, operation.value, tuple(x.shape), self.vae)
            notices.own_failure(f"{operation.value} the picture", failure, details)
            del failure  # its traceback holds our tensors
            return host(x, *args, **kwargs)

        return forward

    def quant_conv(self, host: Wrapper) -> Wrapper:
        def forward(x: Tensor) -> Any:
            return x if x is self.moments else host(x)

        return forward

    def _run(self, operation: Operation, x: Tensor) -> Tensor:
        outcome, record = self._by_policy(operation, x)
        current = generation.current()
        told = current is not None and any(record.resembles(other) for other in current.records)
        if current is not None:
            current.records.append(record)
        if record.fallback and not told:  # once for the pictures of a batch
            notices.tell(infotext.sentence(record, x), warning=not outcome.plan.route.exact)
        if operation is Operation.DECODE:
            return outcome.result
        if outcome.scaled:  # TAESD: a posterior without spread, around its latents
            mean = first_stage.unscale(self.model, outcome.result)
            moments = torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)
        else:
            assert outcome.log_variance is not None
            moments = torch.cat([outcome.result, outcome.log_variance], dim=1)
        # SD3 draws its random numbers in the order in which these lie in memory, so they lie as the host's.
        self.moments = moments.contiguous(memory_format=first_stage.memory_format(self.vae.encoder))
        return self.moments

    def _by_policy(self, operation: Operation, x: Tensor) -> tuple[Outcome, generation.Record]:
        current = generation.current()
        request = current.request if current is not None else Request()
        settings = options.read()
        tries = policy.tries(request, settings, memory.available(x.device, settings.reserve_mb), operation)
        problems: list[str] = []
        for number, attempt in enumerate(tries):
            ladder = self._ladder(operation, x, attempt, settings.reserve_mb)
            try:
                with _without_autocast(x.device), _progress(operation, ladder):
                    outcome = (
                        ladder.decode(x, self.scaled if self._one_picture(x) else None)
                        if operation is Operation.DECODE
                        else ladder.encode(x)
                    )
            except PlanError as error:
                if number + 1 == len(tries) or isinstance(error, NumericError):
                    raise
                problems.append(str(error))
                continue
            precision.remember(self.model, outcome)
            route = outcome.plan.route
            wanted = request.route if operation is Operation.DECODE else None
            fallback = route is not (wanted or Route.FULL) or bool(outcome.attempts) or bool(problems)
            note = attempt.note if route in attempt.order else ""
            return outcome, generation.Record(
                operation, outcome, fallback, "; ".join([*problems, note]).strip("; ")
            )
        raise AssertionError("no way to try")

    def _one_picture(self, x: Tensor) -> bool:
        return (
            self.scaled is not None and self.scaled.shape[-2:] == x.shape[-2:] and len(self.scaled) == len(x)
        )

    def _ladder(self, operation: Operation, x: Tensor, attempt: policy.Try, reserve_mb: int) -> Ladder:
        first = [not attempt.trust_prediction]

        def budget(device: torch.device) -> int:
            if first[0] and device == x.device:
                first[0] = False
                return 1 << 62
            return memory.available(device, reserve_mb)

        ladder = ladder_for(self.model, operation, x.device, attempt.order, budget)
        if operation is Operation.DECODE and not self._one_picture(x):
            ladder.taesd = None
        return ladder

    def _raise_if_the_numbers_are_to_blame(
        self, error: VAEGuardError, operation: Operation, x: Tensor
    ) -> None:
        """NaN that no allowed dtype cures is told as the host tells it; its own decode would only repeat it."""
        from modules import devices

        not_finite = isinstance(error, InputError) and not bool(torch.isfinite(x).all())
        if operation is Operation.DECODE and (not_finite or isinstance(error, NumericError)):
            raise devices.NansException(str(error)) from None


def ladder_for(
    model: Any,
    operation: Operation,
    device: torch.device,
    order: Sequence[Route],
    budget: Callable[[torch.device], int],
) -> Ladder:
    """The ladder on the VAE of ``model`` as it is loaded now, with the host's options."""
    from modules import shared

    vae, repair = model.first_stage_model, _repair_dtypes()
    dtype = first_stage.compute_dtype(getattr(vae, operation.half))
    needed = precision.known(model)
    if needed in repair and not shared.cmd_opts.disable_nan_check:
        dtype = needed
    ours = first_stage.borrow(vae, operation)

    def tell(text: str) -> None:
        notices.tell_once(f"check {device} {dtype}", text)

    return Ladder(
        ours,
        first_stage.taesd(model, operation) if Route.TAESD in order else None,
        device=device,
        dtype=dtype,
        order=order,
        budget=budget,
        repair=repair,
        wrap=first_stage.wraps(vae, operation),
        check_finite=not shared.cmd_opts.disable_nan_check,
        rates=trusted_rates(ours, Compute(device, dtype), tell),
    )


def _repair_dtypes() -> tuple[torch.dtype, ...]:
    """What the user allows for numbers that overflow, as the host's two options say."""
    from modules import shared

    if shared.opts.auto_vae_precision_bfloat16:
        return (torch.bfloat16,)
    return (torch.float32,) if shared.opts.auto_vae_precision else ()


def _without_autocast(device: torch.device) -> Any:
    """Our engine sets its dtypes itself; SDXL and SD3 are called within autocast."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cuda", "cpu") else nullcontext()


@contextmanager
def _progress(operation: Operation, ladder: Ladder) -> Iterator[None]:
    """Show the bands done in the page's progress bar."""
    from modules import shared

    before = shared.state.textinfo

    def report(done: int, total: int) -> None:
        shared.state.textinfo = f"VAE Guard: {operation.doing}, {done} of {total} bands"

    ladder.progress = report
    try:
        yield
    finally:
        shared.state.textinfo = before
