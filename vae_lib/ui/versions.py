"""What gradio 3.41 and 4.40 call by different names."""

from __future__ import annotations

import gradio as gr

IS_GRADIO_4 = int(gr.__version__.split(".")[0]) >= 4


def with_javascript(function: str) -> dict[str, str]:
    """The argument of an event that runs a function of the page's over its inputs first."""
    return {"js" if IS_GRADIO_4 else "_js": function}


def queued(app: gr.Blocks, at_once: int) -> gr.Blocks:
    """The app with a queue in which so many events run at once."""
    name = "default_concurrency_limit" if IS_GRADIO_4 else "concurrency_count"
    return app.queue(**{name: at_once})
