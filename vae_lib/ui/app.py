"""The VAE tab by itself: ``python -m vae_lib ui``."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from vae_lib.ui import needs

os.environ.update(needs.environment())  # which gradio reads when it is imported

import gradio as gr

from vae_lib.errors import InputError
from vae_lib.ui import hints
from vae_lib.ui.backend import Backend
from vae_lib.ui.own_page import OWN_PAGE_ONLY, close_to_others
from vae_lib.ui.standalone import FolderBackend
from vae_lib.ui.tab import build_tab
from vae_lib.ui.versions import queued

HOST, FIRST_PORT = "127.0.0.1", 7870  # beside the WebUI's 7860


def build_app(backend: Backend) -> gr.Blocks:
    """A page that holds nothing but the tab."""
    # The theme's own fonts would be fetched from Google.
    theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
    css = "footer { display: none !important; }"
    with gr.Blocks(title="VAE Guard", theme=theme, css=css, analytics_enabled=False) as app:
        gr.Markdown("## VAE Guard")
        build_tab(backend)
        hints.show_by_ourselves(app)
    return queued(app, 16)


def launch(folder: Path, *, port: int | None = None, open_browser: bool = True, block: bool = True) -> gr.Blocks:
    """Serve the tab for a folder of VAEs.

    Args:
        port: by default the first free one from 7870 on.
        open_browser: open the page in the user's browser.
        block: return only when the user ends it (Ctrl+C); otherwise at once, and ``close()`` of the result ends it.

    Raises:
        InputError: when the folder is not there or the port is taken.
    """
    backend = FolderBackend(Path(folder).expanduser())
    app = build_app(backend)
    app.launch(
        server_name=HOST, server_port=_free_port(port), inbrowser=open_browser, prevent_thread_lock=True,
        show_api=False, show_error=True, quiet=not block, share=False, app_kwargs={"middleware": [OWN_PAGE_ONLY]},
    )  # fmt: skip
    close_to_others(app.server_app)
    if block:
        app.block_thread()
    return app


def _free_port(wanted: int | None) -> int:
    for port in [wanted] if wanted is not None else range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                if os.name != "nt":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
                return port
            except OverflowError as error:
                raise InputError(f"{port} is not a port; ports go from 1 to 65535.") from error
            except OSError:
                continue
    raise InputError(
        f"Port {wanted} is taken or not allowed on {HOST}; choose another with --port."
        if wanted is not None
        else f"No port from {FIRST_PORT} on is free on {HOST}; choose one with --port."
    )
