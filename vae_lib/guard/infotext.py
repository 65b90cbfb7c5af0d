"""Our entries in a picture's infotext, and what is read of them when it is pasted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vae_lib.decode import Outcome, wording
from vae_lib.engine import Operation
from vae_lib.errors import InputError
from vae_lib.guard.generation import Generation, Record
from vae_lib.guard.kept import HOSTS_OWN
from vae_lib.guard.request import Request, decode_by_of, threshold_of
from vae_lib.planning import DEFAULT_ORDER, Route

DONE = "VAE Guard"
ENCODED = "VAE Guard encode"
DECODE_BY = "VAE Guard decode by"
THRESHOLD = "VAE Guard threshold"
FALLBACK = "VAE Guard fallback"

_FROM_BEST = DEFAULT_ORDER
# An entry of an infotext's last line, as AUTOMATIC1111's infotext_utils reads it.
_ENTRY = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def entries(generation: Generation, records: Sequence[Record]) -> dict[str, str]:
    """What was done for the pictures just decoded, and what had been asked for if we did anything."""
    done = {}
    if generation.fell_to_host:
        done[DONE] = HOSTS_OWN
    elif outcome := worst(records):
        done[DONE] = wording.entry(outcome)
    encodes = [
        record
        for record in generation.records
        if record.operation is Operation.ENCODE and record.outcome.plan.route is not Route.FULL
    ]
    if outcome := worst(encodes):
        done[ENCODED] = wording.entry(outcome)
    return done | (_asked(generation.request) if generation.records else {})


def _asked(request: Request) -> dict[str, str]:
    """The request; defaults are left out."""
    default = Request()
    asked = {}
    if request.decode_by != default.decode_by:
        asked[DECODE_BY] = request.decode_by
    if request.threshold != default.threshold:
        asked[THRESHOLD] = f"{request.threshold:g}"
    if request.fallback != default.fallback:
        asked[FALLBACK] = "off"
    return asked


def worst(records: Sequence[Record]) -> Outcome | None:
    """Of the pictures of a batch, the one that came by the least preferred route; None when we did nothing."""
    outcomes = (record.outcome for record in records)
    return max(outcomes, key=lambda outcome: _FROM_BEST.index(outcome.plan.route), default=None)


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


def replaced(text: str, done: str, vae: Mapping[str, str | None]) -> str:
    """An infotext with its entries of ours replaced, for a picture that was decoded again.

    Args:
        vae: the host's entries of the VAE that did so; None where there is no such entry.
    """
    head, newline, last = text.rpartition("\n")
    kept: dict[str, str] = {}
    for key, value in _ENTRY.findall(last):
        if key in vae:
            if (now := vae[key]) is not None:
                kept[key] = _quoted(now)
        elif key == DONE:
            kept[key] = ""  # to stay at its place
        elif key == ENCODED or not key.startswith(DONE):
            kept[key] = value
    kept |= {key: _quoted(now) for key, now in vae.items() if now is not None and key not in kept}
    kept[DONE] = _quoted(f"{done}; decoded again")
    return head + newline + ", ".join(key if key == value else f"{key}: {value}" for key, value in kept.items())


def prompt_and_seeds(texts: Sequence[str], longest: int = 80) -> tuple[str, str]:
    """The beginning of the first picture's prompt, and the seeds of all, for a list."""
    if not texts:
        return "", ""
    prompt = re.split(r"\n(?:Negative prompt: |Steps: )", texts[0])[0].replace("\n", " ").strip()
    if prompt.startswith("Steps: "):
        prompt = ""
    found = (dict(_ENTRY.findall(text.rpartition("\n")[2])).get("Seed") for text in texts)
    seeds = list(dict.fromkeys(seed for seed in found if seed))
    return (
        prompt if len(prompt) <= longest else f"{prompt[:longest]}…",
        seeds[0] if len(seeds) == 1 else f"{seeds[0]}, …" if seeds else "",
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
