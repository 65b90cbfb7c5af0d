"""The API: our arguments checked before a generation starts, and routes of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vae_lib.errors import InputError
from vae_lib.webui import patching, request

TITLE = "vae guard"


def install() -> None:
    """Check and convert our ``alwayson_scripts`` arguments in the host's API."""
    from modules.api.api import Api

    patching.patch(Api, "init_script_args", _init_script_args)


def _init_script_args(original: Any) -> Any:
    def init_script_args(self: Any, api_request: Any, *args: Any, **kwargs: Any) -> Any:
        from fastapi.exceptions import HTTPException

        for name, values in (getattr(api_request, "alwayson_scripts", None) or {}).items():
            if name.lower() != TITLE or not isinstance(values, dict) or "args" not in values:
                continue
            try:
                values["args"] = _positional(values["args"])
            except InputError as error:
                raise HTTPException(status_code=422, detail=str(error)) from error
        return original(self, api_request, *args, **kwargs)

    return init_script_args


def _positional(args: Any) -> list[Any]:
    """Checked arguments in the panel's order, from a list or a mapping."""
    if isinstance(args, Mapping):
        checked = request.from_mapping(args)
    elif isinstance(args, (list, tuple)):
        checked = request.from_args(args)
    else:
        raise InputError(f"'args' of VAE Guard must be a list or an object, not {args!r}.")
    return [getattr(checked, name) for name in request.NAMES]


def add_routes(demo: Any, app: Any) -> None:
    """Routes under /vae-guard/."""
