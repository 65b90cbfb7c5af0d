"""Our arguments in ``alwayson_scripts`` of the host's API, checked before a generation starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request as HTTPRequest
from fastapi.exceptions import HTTPException

from vae_lib.errors import InputError, written
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
            raise InputError(f"'args' of VAE Guard must be a list or an object, not {written(args)}.")
    except InputError as error:
        raise unprocessable(error) from error
    return [getattr(checked, name) for name in request.NAMES]


async def not_by_another_site(http: HTTPRequest) -> None:
    """Refuse what changes something and is not asked for in JSON, and what another site's page takes for a picture.

    Such a page may send forms and plain texts to a WebUI on this machine without the user's knowledge, and have it
    answer as an image or a script, but send no JSON: the browser asks the WebUI first.
    """
    if http.headers.get("sec-fetch-site") == "cross-site" and http.headers.get("sec-fetch-mode") == "no-cors":
        raise HTTPException(403, "This is no part of another site's page.")
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if http.method == "POST" and kind != "application/json":
        raise HTTPException(415, "Ask in JSON: the header 'Content-Type: application/json' is missing.")


def unprocessable(error: Exception) -> HTTPException:
    return HTTPException(status_code=422, detail=str(error))
