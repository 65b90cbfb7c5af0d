"""The page whose event is being handled: gradio 4 keeps it in context variables, gradio 3 by thread."""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable
from html import escape
from typing import Any, TypeVar

import gradio as gr
from gradio import context

Result = TypeVar("Result")


def notify(message: str, *, warning: bool) -> None:
    """A notice in that page; nothing happens where there is none, as in a request to the API."""
    if not _is_served():
        return
    if hasattr(context, "LocalContext"):  # gradio 4 shows it as HTML
        message = escape(message, quote=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (gr.Warning if warning else gr.Info)(message)


def carried(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function for another thread, in which the page that is served in this one gets its notices, too."""
    if hasattr(context, "LocalContext"):
        here = contextvars.copy_context()
        return lambda *args, **kwargs: here.run(function, *args, **kwargs)
    served = dict(vars(context.thread_data))

    def there(*args: Any, **kwargs: Any) -> Result:
        known = vars(context.thread_data)
        before = dict(known)
        known.update(served)
        try:
            return function(*args, **kwargs)
        finally:
            known.clear()
            known.update(before)

    return there


def _is_served() -> bool:
    if hasattr(context, "LocalContext"):
        return context.LocalContext.event_id.get() is not None
    return hasattr(context.thread_data, "blocks")
