"""What was done, in words: the picture's infotext, the sentence for the user, and the way back when it is pasted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vae_lib.decode import Operation, Route, dtype_name
from vae_lib.errors import InputError
from vae_lib.webui.generation import Generation, Record
from vae_lib.webui.policy import ASKED
from vae_lib.webui.request import Request, decode_by_of, threshold_of

DONE = "VAE Guard"
ENCODED = "VAE Guard encode"
DECODE_BY = "VAE Guard decode by"
THRESHOLD = "VAE Guard threshold"
FALLBACK = "VAE Guard fallback"

_FROM_BEST = (Route.FULL, Route.TILED, Route.OFFLOAD, Route.CPU, Route.TAESD)


def write(generation: Generation, records: Sequence[Record]) -> None:
    """Note in the infotext what was done for the pictures just decoded, and what had been asked for."""
    if generation.p is None:
        return
    params = generation.p.extra_generation_params
    if worst := _worst(records):
        params[DONE] = describe(worst)
    encodes = [
        r
        for r in generation.records
        if r.operation is Operation.ENCODE and r.outcome.plan.route is not Route.FULL
    ]
    if worst := _worst(encodes):
        params[ENCODED] = describe(worst)
    params.update(asked(generation.request))


def asked(request: Request) -> dict[str, str]:
    """The request as infotext entries; defaults are left out."""
    default = Request()
    entries = {}
    if request.decode_by != default.decode_by:
        entries[DECODE_BY] = request.decode_by
    if request.threshold != default.threshold:
        entries[THRESHOLD] = f"{request.threshold:g}"
    if request.fallback != default.fallback:
        entries[FALLBACK] = "off"
    return entries


def describe(record: Record) -> str:
    """The way and, where it was not the plain one, why: "tiled, 48-row bands; ..."."""
    plan, outcome = record.outcome.plan, record.outcome
    if plan.route is Route.FULL and not outcome.attempts:
        return "full"
    way = plan.describe().replace("offload", "tiled + RAM")
    reason = "" if record.note == ASKED else plan.reason.removeprefix(plan.describe()).lstrip(": ")
    parts = [way, f"in {dtype_name(plan.dtype)}" if outcome.repaired else "", record.note, reason]
    parts += [f"{a.plan.route.value} failed: {a.problem}" for a in outcome.attempts]
    return "; ".join(part for part in parts if part)


def sentence(record: Record, x: Tensor) -> str:
    """For the user, when another way than the plain one was taken: which, why, what it cost."""
    outcome = record.outcome
    height, width = (
        x.shape[-2:] if record.operation is Operation.ENCODE else (8 * x.shape[-2], 8 * x.shape[-1])
    )
    done = record.operation.done
    text = f"{width}x{height} {done} by another way: {describe(record)} ({outcome.seconds:.1f} s)."
    if outcome.plan.route is Route.TAESD:
        text += (
            " TAESD is approximate; the latents are kept: 'Decode again in full' gives the exact picture."
            if record.operation is Operation.DECODE
            else " TAESD is approximate."
        )
    else:
        text += " The picture is exact."
    return text


def pasted_decode_by(params: dict[str, Any]) -> str:
    """The panel's value for a pasted infotext: the default where it says nothing."""
    try:
        return decode_by_of(params[DECODE_BY])
    except (KeyError, InputError):
        return Request().decode_by


def pasted_threshold(params: dict[str, Any]) -> float:
    try:
        return threshold_of(float(params[THRESHOLD]))
    except (KeyError, ValueError, InputError):
        return Request().threshold


def pasted_fallback(params: dict[str, Any]) -> bool:
    return params.get(FALLBACK) != "off"


def _worst(records: Sequence[Record]) -> Record | None:
    return max(records, key=lambda record: _FROM_BEST.index(record.outcome.plan.route), default=None)


def replaced(text: str, done: str) -> str:
    """An infotext with its entry of ours replaced, for a picture that was decoded again."""
    from modules import infotext_utils

    head, newline, last = text.rpartition("\n")
    entries = [
        (key, value) for key, value in infotext_utils.re_param.findall(last) if not key.startswith(DONE)
    ]
    entries.append((DONE, infotext_utils.quote(f"{done}; decoded again")))
    return head + newline + ", ".join(key if key == value else f"{key}: {value}" for key, value in entries)
