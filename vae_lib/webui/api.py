"""The API's routes of our own: what is planned, kept and downloaded."""

from __future__ import annotations

import base64
import dataclasses
import functools
import inspect
import io
from collections.abc import Callable
from secrets import compare_digest
from typing import Any

from fastapi import Depends
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic
from PIL.PngImagePlugin import PngInfo

import vae_lib
from vae_lib.decode import wording
from vae_lib.device import free_memory
from vae_lib.engine import Operation
from vae_lib.errors import InputError, VAEGuardError, printable
from vae_lib.guard import NOTHING_LOADED, Guard, Pictures, Settings, decode_again
from vae_lib.guard.host import HostVAE
from vae_lib.planning import Prospect
from vae_lib.webui.downloads import Downloads
from vae_lib.webui.host import WebUI
from vae_lib.webui.request_api import not_by_another_site, unprocessable
from vae_lib.webui.sparing import Busy, Sparing

LARGEST_SIDE = 32768
LARGEST_AREA = 8192 * 8192  # pixels: planning larger ones takes longer than a second


class Routes:
    """Each method is a route."""

    def __init__(self, guard: Guard, host: WebUI, downloads: Downloads) -> None:
        self._guard, self._host, self._downloads = guard, host, downloads
        self._plans = Sparing[dict[str, Any]]()

    def add(self, app: Any) -> None:
        """Add them to the host's API, behind the same password."""
        guarded = self._dependencies()
        downloads = self._downloads
        for path, method, route in (
            ("status", "GET", self.status),
            ("plan", "GET", self.plan),
            ("latents", "GET", self.latents),
            ("latents/{wanted}/decode", "POST", self.decode_latents),
            ("latents/{wanted}", "DELETE", self.remove_latents),
            ("downloads", "POST", downloads.start),
            ("downloads", "GET", downloads.jobs),
            ("downloads/{job_id}", "GET", downloads.job),
            ("downloads/{job_id}", "DELETE", downloads.cancel),
        ):
            app.add_api_route(f"/vae-guard/{path}", _in_json(route), methods=[method], dependencies=guarded)

    def _dependencies(self) -> list[Any]:
        """What refuses other sites, and asks for the user and password of ``--api-auth`` where there are some."""
        ours = Depends(not_by_another_site)
        known = self._host.api_accounts()
        if not known:
            return [ours]

        async def check(credentials: Any = Depends(HTTPBasic())) -> None:  # noqa: B008
            password = known.get(credentials.username)
            if password is None or not compare_digest(credentials.password.encode(), password.encode()):
                raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

        return [Depends(check), ours]

    def status(self) -> dict[str, Any]:
        """The device, its memory in bytes (null where nobody knows what is free), the settings, how many are kept."""
        device = self._host.device()
        return {
            "version": vae_lib.__version__,
            "device": str(device),
            "dtype": str(self._host.dtype()).removeprefix("torch."),
            "free_bytes": free_memory(device),
            "usable_bytes": self._guard.available_bytes(device),
            "settings": _named(self._guard.settings()),
            "kept": len(self._guard.kept.items()),
        }

    def plan(self, width: int = 512, height: int = 512, batch: int = 1, operation: str = "decode") -> dict[str, Any]:
        """What a decode or encode of that size in pixels would need by each route, and what would be done now."""
        for name, value, most in (
            ("width", width, LARGEST_SIDE),
            ("height", height, LARGEST_SIDE),
            ("batch", batch, 64),
        ):
            least = 1 if name == "batch" else 8
            if not least <= value <= most:
                raise unprocessable(InputError(f"'{name}' must be from {least} to {most}, not {value}."))
        if width * height > LARGEST_AREA:
            limit = f"{LARGEST_AREA / 1e6:.0f} million pixels"
            raise unprocessable(InputError(f"{width}x{height} is too large to be planned here: at most {limit}."))
        if operation not in [known.value for known in Operation]:
            raise unprocessable(InputError(f"'operation' must be decode or encode, not {operation!r}."))
        vae = self._host.vae()
        if vae is None and self._host.checkpoint() is None:
            raise unprocessable(InputError(NOTHING_LOADED))
        if vae is None:
            raise unprocessable(InputError(self._guard.problem(vae)))
        pictures = Operation(operation), width, height, batch
        about = vae.model_name, id(vae.module), self._guard.settings()
        try:
            return self._plans.answer((pictures, about), lambda: self._planned(vae, *pictures))
        except Busy as error:
            raise HTTPException(429, str(error), headers={"Retry-After": f"{error.seconds:.0f}"}) from error

    def _planned(self, vae: HostVAE, operation: Operation, width: int, height: int, batch: int) -> dict[str, Any]:
        if problem := self._guard.problem(vae):
            raise unprocessable(InputError(problem))
        outlook = self._guard.outlook(vae, operation, width, height, batch)
        chosen = outlook.chosen
        answer = {
            "route": None if chosen is None else chosen.route.value,
            "reason": wording.expected(outlook),
            "peak_bytes": None if chosen is None else chosen.peak_bytes,
            "seconds": None if chosen is None else round(chosen.seconds, 3),
        }
        allowed = outlook.preference.routes
        routes = {p.route.value: _route(p) for p in outlook.prospects if p.route in allowed and p.least}
        return {
            "usable_bytes": outlook.free(outlook.work.device),
            "chosen": answer,
            "routes": routes,
            "ways": routes,  # as they were called before 0.2
        }

    def latents(self) -> list[dict[str, Any]]:
        """The kept latents, the latest first; then unfinished ones of an earlier run."""
        return [
            {
                "id": item.id,
                "created": item.created.isoformat(),
                "pictures": item.shape[0],
                "width": item.size[0],
                "height": item.size[1],
                "model": item.model_name,
                "decoded_by": item.route,
                "infotexts": item.infotexts,
                "not_repeated": list(item.not_repeated),
                "file": None if item.path is None else printable(str(item.path)),
            }
            for item in self._guard.kept.items()
        ]

    def remove_latents(self, wanted: str) -> dict[str, Any]:
        """Throw kept latents away by their id, their file included."""
        kept = self._guard.kept
        try:
            kept.remove(kept.item(wanted))
        except InputError as error:
            raise unprocessable(error) from error
        return {"kept": len(kept.items())}

    def decode_latents(self, wanted: str, vae_in_use: bool = False) -> dict[str, Any]:
        """Decode kept latents again, exactly, with their generation's VAE or the one in use: base64 PNGs and their
        infotexts."""
        guard = self._guard
        try:
            held = guard.kept.item(wanted)
            with self._host.job("vae-guard"):
                pictures = decode_again(guard, held, saved=False, vae_in_use=vae_in_use)
        except VAEGuardError as error:
            raise unprocessable(error) from error
        return _encoded(pictures) | {"not_repeated": list(held.not_repeated)}


def _in_json(route: Callable[..., Any]) -> Callable[..., JSONResponse]:
    """A route whose answer goes out as it is: FastAPI would look into each value of it, which takes milliseconds."""

    @functools.wraps(route)
    def answered(*args: Any, **kwargs: Any) -> JSONResponse:
        return JSONResponse(route(*args, **kwargs))

    # what FastAPI asks for: the parameters, in types of the module that they are written in
    answered.__signature__ = inspect.signature(route, eval_str=True)  # type: ignore[attr-defined]
    return answered


def _named(settings: Settings) -> dict[str, Any]:
    """All settings there are; ``fixed`` by the name that the settings page gives it."""
    values = dataclasses.asdict(settings)
    mode = "fixed" if values.pop("fixed") else "automatic"
    fallback = [route.value for route in settings.fallback]
    return {"mode": mode, **values, "fallback": fallback, "spare": str(settings.spare)}


def _route(prospect: Prospect) -> dict[str, Any]:
    """The least memory that a route can do with, and what it would take now, if it fits."""
    least, now = prospect.least, prospect.now
    return {
        "least_peak_bytes": None if least is None else least.peak_bytes,
        "peak_bytes": None if now is None else now.peak_bytes,
        "seconds": None if now is None else round(now.seconds, 3),
    }


def _encoded(pictures: Pictures) -> dict[str, Any]:
    encoded = []
    for image, text in pictures:
        info, buffer = PngInfo(), io.BytesIO()
        info.add_text("parameters", text)
        image.save(buffer, format="PNG", pnginfo=info)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    return {"images": encoded, "infotexts": [text for _, text in pictures]}
