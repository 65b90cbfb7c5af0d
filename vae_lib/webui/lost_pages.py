"""Let "Reload UI" come to its end after a page was closed in the middle of one of its events."""

from __future__ import annotations

from typing import Any


def let_go(demo: Any) -> None:
    """Close the websocket of every event that the queue of ``demo`` is done with.

    gradio 3.41 keeps the websocket's task alive when the page vanishes while an event waits or streams, as the lists
    of our tab do. The server waits for such a task for ever when it is closed, so that "Reload UI" hangs.
    """
    from starlette.websockets import WebSocketState

    queue: Any = getattr(demo, "_queue", None)
    original = getattr(queue, "clean_event", None)
    if original is None:
        return

    async def clean_event(event: Any) -> None:
        await original(event)
        websocket = getattr(event, "websocket", None)
        if websocket is not None:
            websocket.application_state = WebSocketState.DISCONNECTED  # what its task looks at

    queue.clean_event = clean_event
