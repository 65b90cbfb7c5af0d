"""What the user is told: in the console, below the picture, and as a notice in the page."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from vae_lib.errors import VAEGuardError
from vae_lib.webui import generation

log = logging.getLogger("vae_guard")

_told: set[str] = set()
_report = ""


def tell(message: str, *, warning: bool = False, page: bool = True) -> None:
    """One line in the console; below the picture and in the page too if a generation is running for the page."""
    print(f"VAE Guard: {message}", file=sys.stderr if warning else sys.stdout)
    current = generation.current()
    if current is not None:
        current.comment(f"VAE Guard: {message}")
    if page:
        _to_page(f"VAE Guard: {message}", warning)


def tell_once(key: str, message: str, *, warning: bool = True) -> None:
    """As `tell`, but only the first time in this session of the WebUI."""
    if key not in _told:
        _told.add(key)
        tell(message, warning=warning)


def own_failure(what: str, error: BaseException, report: str) -> None:
    """Our own code failed: say once that the host's is used; ``report`` goes to the console and the tab."""
    global _report
    key = f"{what}:{type(error).__name__}"
    if key in _told:
        return
    _told.add(key)
    if isinstance(error, VAEGuardError):
        tell(f"{error} The WebUI's own code was used instead.", warning=True)
        return
    tell(
        f"could not {what} ({type(error).__name__}: {error}); the WebUI's own code was used instead. "
        "Please report this with the text in the console, or in the tab VAE > Unfinished.",
        warning=True,
    )
    _report = report
    print(report, file=sys.stderr)


def last_report() -> str:
    """The report of the latest failure of our own in this session, ready to copy; "" when there was none."""
    return _report


def _to_page(message: str, warning: bool) -> None:
    """A notice in the page, if this thread serves one."""
    import gradio as gr

    try:
        from gradio.context import thread_data  # gradio 3
    except ImportError:
        thread_data = None
    if thread_data is None or not hasattr(thread_data, "blocks"):
        return
    show: Any = gr.Warning if warning else gr.Info
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            show(message)
        except Exception as error:
            log.debug("no notice in the page: %s", error)
