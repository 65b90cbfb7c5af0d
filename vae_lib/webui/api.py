"""The API: our arguments checked before a generation starts, and routes of our own."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from vae_lib.decode import Operation, Route, Work, candidates, choose, free_bytes
from vae_lib.errors import InputError, PlanError
from vae_lib.webui import hooks, kept, memory, options, patching, request

TITLE = "vae guard"
LARGEST_SIDE = 32768


def install() -> None:
    """Check and convert our ``alwayson_scripts`` arguments in the host's API."""
    from modules.api.api import Api

    patching.patch(Api, "init_script_args", _init_script_args)


def _init_script_args(original: Any) -> Any:
    def init_script_args(self: Any, api_request: Any, *args: Any, **kwargs: Any) -> Any:
        for name, values in (getattr(api_request, "alwayson_scripts", None) or {}).items():
            if name.lower() != TITLE or not isinstance(values, dict) or "args" not in values:
                continue
            try:
                values["args"] = _positional(values["args"])
            except InputError as error:
                raise unprocessable(error) from error
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


def unprocessable(error: Exception) -> Exception:
    from fastapi.exceptions import HTTPException

    return HTTPException(status_code=422, detail=str(error))


def add_routes(demo: Any, app: Any) -> None:
    """Add our routes where the host has its API (``--api``, ``--nowebui``), behind the same password."""
    from modules import shared

    if not (shared.cmd_opts.api or shared.cmd_opts.nowebui):
        return
    guarded = dependencies()
    app.add_api_route("/vae-guard/status", status, methods=["GET"], dependencies=guarded)
    app.add_api_route("/vae-guard/plan", plan, methods=["GET"], dependencies=guarded)
    app.add_api_route("/vae-guard/latents", latents, methods=["GET"], dependencies=guarded)
    app.add_api_route(
        "/vae-guard/latents/{index}/decode", decode_latents, methods=["POST"], dependencies=guarded
    )
    app.add_api_route("/vae-guard/latents/{index}", remove_latents, methods=["DELETE"], dependencies=guarded)


def dependencies() -> list[Any]:
    """What asks for the user and password of ``--api-auth``; nothing where there are none."""
    from secrets import compare_digest

    from fastapi import Depends
    from fastapi.exceptions import HTTPException
    from fastapi.security import HTTPBasic
    from modules import shared

    if not shared.cmd_opts.api_auth:
        return []
    known = dict(entry.split(":", 1) for entry in shared.cmd_opts.api_auth.split(","))

    def check(credentials: Any = Depends(HTTPBasic())) -> None:  # noqa: B008
        password = known.get(credentials.username)
        if password is None or not compare_digest(credentials.password.encode(), password.encode()):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return [Depends(check)]


def status() -> dict[str, Any]:
    """The device, its memory in bytes, the settings, how many generations' latents are kept."""
    from modules import devices

    import vae_lib

    settings = options.read()
    return {
        "version": vae_lib.__version__,
        "device": str(devices.device),
        "dtype": str(devices.dtype_vae).removeprefix("torch."),
        "free_bytes": free_bytes(devices.device),
        "usable_bytes": memory.available(devices.device, settings.reserve_mb),
        "settings": {
            "mode": "fixed" if settings.fixed else "automatic",
            "threshold": settings.threshold,
            "fallback": [route.value for route in settings.fallback],
            "reserve_mb": settings.reserve_mb,
            "encode": settings.encode,
            "keep": settings.keep,
        },
        "kept": len(kept.items()),
    }


def plan(width: int = 512, height: int = 512, batch: int = 1, operation: str = "decode") -> dict[str, Any]:
    """What a decode or encode of that size in pixels would need by each way, and what would be chosen now."""
    from modules import devices, shared

    for name, value, most in (
        ("width", width, LARGEST_SIDE),
        ("height", height, LARGEST_SIDE),
        ("batch", batch, 64),
    ):
        least = 1 if name == "batch" else 8
        if not least <= value <= most:
            raise unprocessable(InputError(f"'{name}' must be from {least} to {most}, not {value}."))
    if operation not in [known.value for known in Operation]:
        raise unprocessable(InputError(f"'operation' must be decode or encode, not {operation!r}."))
    settings = options.read()
    usable = memory.available(devices.device, settings.reserve_mb)
    order = (Route.FULL, *settings.fallback)
    ladder = hooks.ladder_for(
        shared.sd_model, Operation(operation), devices.device, order, lambda device: usable
    )
    work = ladder.work(operation, height // 8, width // 8, batch)
    try:
        chosen = choose(work, usable, order=order)
        answer: dict[str, Any] = {
            "route": chosen.route.value,
            "reason": chosen.reason,
            "peak_bytes": chosen.peak_bytes,
        }
    except PlanError as error:
        answer = {"route": None, "reason": str(error), "peak_bytes": None}
    ways = {route.value: _way(work, route, usable) for route in order if candidates(work, route)}
    return {"usable_bytes": usable, "chosen": answer, "ways": ways}


def _way(work: Work, route: Route, usable: int) -> dict[str, Any]:
    """The least memory that a way can do with, and what it would take now, if it fits."""
    least = min(plan.peak_bytes for plan in candidates(work, route))
    if least > usable:
        return {"least_peak_bytes": least, "peak_bytes": None, "seconds": None}
    best = choose(work, usable, order=(route,))
    return {"least_peak_bytes": least, "peak_bytes": best.peak_bytes, "seconds": round(best.seconds, 3)}


def latents() -> list[dict[str, Any]]:
    """The kept latents, the latest first; then unfinished ones of an earlier run."""
    return [
        {
            "index": index,
            "created": item.created.isoformat(),
            "pictures": len(item.latents),
            "width": item.size[0],
            "height": item.size[1],
            "model": item.model_name,
            "decoded_by": item.route,
            "infotexts": item.infotexts,
            "file": None if item.path is None else str(item.path),
        }
        for index, item in enumerate(kept.items())
    ]


def remove_latents(index: int) -> dict[str, Any]:
    """Throw kept latents away, their file included."""
    try:
        kept.remove(kept.item(index))
    except InputError as error:
        raise unprocessable(error) from error
    return {"kept": len(kept.items())}


def decode_latents(index: int) -> dict[str, Any]:
    """Decode kept latents once more, exactly: base64 PNGs and their infotexts."""
    try:
        return kept.redecode(kept.item(index), _encoded)
    except InputError as error:
        raise unprocessable(error) from error


def _encoded(pictures: kept.Pictures) -> dict[str, Any]:
    from PIL.PngImagePlugin import PngInfo

    encoded = []
    for image, text in pictures:
        info, buffer = PngInfo(), io.BytesIO()
        info.add_text("parameters", text)
        image.save(buffer, format="PNG", pnginfo=info)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return {"images": encoded, "infotexts": [text for _, text in pictures]}
