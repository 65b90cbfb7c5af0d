"""Errors that end in one sentence for the user; everything else is a bug."""

from __future__ import annotations

import json
import re

_USER = re.compile(r"(?<=://)[^/?#\s]*@")


def without_user(text: str) -> str:
    """An address, or a text with addresses in it, without the user and password that may stand in one."""
    return _USER.sub("", text)


def printable(text: str) -> str:
    """The same text fit to be shown: on one line, control characters and undecodable bytes escaped, no passwords."""
    text = without_user(text)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def written(value: object) -> str:
    """A value as it stands in a config.json or a request, for a sentence: true, not True."""
    return json.dumps(value, ensure_ascii=False, default=str)


class VAEGuardError(Exception):
    """An expected failure. ``str(error)`` is the sentence that the user reads: what happened and what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())  # file names may hold anything


class CheckpointError(VAEGuardError):
    """A weights file is missing, damaged, unsafe, or not a VAE."""


class UnknownVAE(CheckpointError):
    """A file holds a VAE, whole perhaps, of a kind that there is no network for here."""


class Aside(VAEGuardError):
    """Why a call is left to the program that made it; no failure."""


class InputError(VAEGuardError):
    """Latents, a picture or an argument that cannot be used."""


class PlanError(VAEGuardError):
    """No enabled route fits in the memory there is."""


class NumericError(PlanError):
    """No floating-point type that is allowed holds the VAE's numbers; memory has no part in it."""


class DeviceLost(VAEGuardError):
    """The device does not answer any more; whatever is asked of it in this process fails."""


class DownloadError(VAEGuardError):
    """A download that did not end in a verified file."""


class Cancelled(VAEGuardError):
    """The user stopped the work; nothing was written."""
