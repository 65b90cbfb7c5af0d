"""Errors that end in one sentence for the user; everything else is a bug."""

from __future__ import annotations


class VAEGuardError(Exception):
    """An expected failure. ``str(error)`` is the sentence that the user reads: what happened and what to do."""


class CheckpointError(VAEGuardError):
    """A weights file is missing, damaged, unsafe, or not a VAE."""


class InputError(VAEGuardError):
    """Latents, a picture or an argument that cannot be used."""


class PlanError(VAEGuardError):
    """No allowed way of decoding fits in the memory there is."""


class NumericError(PlanError):
    """No floating-point type that is allowed holds the VAE's numbers; memory has no part in it."""


class DownloadError(VAEGuardError):
    """A download that did not end in a verified file."""


class Cancelled(VAEGuardError):
    """The user stopped the work; nothing was written."""
