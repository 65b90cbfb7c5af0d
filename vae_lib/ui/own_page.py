"""Nobody but the page itself is answered, and nothing is served but what the page shows.

A page of another site that is open in the same browser may send requests to this machine, and a name that is made to
lead here may make it the same site. gradio 3 lets all of them read what it answers, and serves what lies below the
folder that it was started in.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.middleware import Middleware

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

NAMES = ("127.0.0.1", "localhost", "::1")  # of this machine
_REFUSED = "This page answers only itself, at http://127.0.0.1 or http://localhost; open it there."


class OwnPageOnly:
    """The outermost layer of the server but for gradio's own, which ``close_to_others`` takes away."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_own(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # against the rules
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED.encode()})


OWN_PAGE_ONLY = Middleware(OwnPageOnly)


def close_to_others(server: Any) -> None:
    """Of gradio's server, once it runs: no page of another origin may read it, and no folder is served."""
    server.user_middleware = [
        layer for layer in server.user_middleware if not layer.cls.__name__.endswith("CORSMiddleware")
    ]
    server.middleware_stack = None  # built again with the next request
    server.cwd = os.devnull  # below which there is nothing


def _is_own(scope: Scope) -> bool:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        is_here = urlsplit(f"//{host}").hostname in NAMES
    except ValueError:
        return False
    # A browser names the origin of whatever may be read or changed, and says where pictures and the like are wanted.
    from_here = origin is None or origin.partition("://")[2] == host
    is_opened = headers.get("sec-fetch-mode") == "navigate"
    return is_here and from_here and (is_opened or headers.get("sec-fetch-site") not in ("cross-site", "same-site"))
