"""What gradio 3.41, 3.43 and 4.40 call by different names."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr
from gradio.events import Dependency

IS_GRADIO_4 = int(gr.__version__.split(".")[0]) >= 4
# The argument of what shows pictures: gradio 4 would make a WebP of each, with other pixels.
LOSSLESS: dict[str, Any] = {"format": "png"} if IS_GRADIO_4 else {}


def with_javascript(function: str) -> dict[str, str]:
    """The argument of an event that runs a function of the page's over its inputs first."""
    return {"js" if IS_GRADIO_4 else "_js": function}


def queued(app: gr.Blocks, at_once: int) -> gr.Blocks:
    """The app with a queue in which so many events run at once."""
    name = "default_concurrency_limit" if IS_GRADIO_4 else "concurrency_count"
    return app.queue(**{name: at_once})


def event_of(trigger: Any, event: dict[str, Any], number: int) -> Dependency:
    """An event that someone else has made, ``number`` in the page's list, for what is to follow it."""
    more = len(inspect.signature(Dependency).parameters) - 3  # 3.43 asks for the function as well
    return Dependency(trigger, event, number, *[None] * more)
