"""What events of the page have in common."""

from __future__ import annotations

from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_name": False}
"""Arguments of an event that shows nothing but its outcome, and is no part of gradio's own API."""


def look_button() -> gr.Button:
    """A hidden button, which ``javascript/vae_guard.js`` presses when the tab that it is in is opened."""
    return gr.Button("Refresh", elem_classes=["vg-hidden", "vg-look"])
