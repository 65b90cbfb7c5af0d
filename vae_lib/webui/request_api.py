"""Our arguments in ``alwayson_scripts`` of the host's API, checked before a generation starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import HTTPException

from vae_lib.errors import InputError
from vae_lib.guard import request

TITLE = "vae guard"


def positional(args: Any) -> list[Any]:
    """Checked arguments in the panel's order, from a list or a mapping; what cannot be used is answered with 422."""
    try:
        if isinstance(args, Mapping):
            checked = request.from_mapping(args)
        elif isinstance(args, (list, tuple)):
            checked = request.from_args(args)
        else:
            raise InputError(f"'args' of VAE Guard must be a list or an object, not {args!r}.")
    except InputError as error:
        raise unprocessable(error) from error
    return [getattr(checked, name) for name in request.NAMES]


def unprocessable(error: Exception) -> HTTPException:
    return HTTPException(status_code=422, detail=str(error))
