"""What the page, the tab and the API ask of the WebUI, beside what ``guard`` asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vae_lib.guard.host import Callbacks, Host, HostVAE
from vae_lib.guard.notices import Notices
from vae_lib.ui.backend import VAEChoice


class WebUI(Host, VAEChoice, Protocol):
    """A WebUI with a page."""

    script_class: Any
    """The base class of what is shown in txt2img and img2img."""
    always_visible: Any
    """What ``show`` of such a script gives to be there without being chosen."""

    def start(self, callbacks: Callbacks) -> None:
        """Register what is ours; called once each time the host loads the extension's script."""

    def owns(self, key: str) -> bool:
        """Whether a setting is ours, or nobody's."""

    def many_of(self) -> Any:
        """The settings page's component for several of a list."""

    def paste_field(self, component: Any, value_of: Callable[[dict[str, Any]], object], api: str) -> Any:
        """How a pasted infotext fills a component."""

    def gpu_call(self, function: Callable[..., Any], extra_outputs: list[Any]) -> Callable[..., Any]:
        """``function`` as a job of the host's queue, with its progress and its display of errors.

        Its first argument is the page's task; the last of its outputs is a line of HTML, to which the host adds the
        time. After an error the outputs are ``extra_outputs`` and that line.
        """

    def grid(self, pictures: Sequence[Image.Image], batch_size: int, infotext: str, tab: str) -> Image.Image:
        """The pictures of a generation as one, in the host's order, saved if the host saves grids."""

    def shown_infotext(self, text: str) -> str:
        """As the page's ``html_info`` takes it."""

    def has_served(self, path: str) -> bool:
        """Whether the page shows this file because the host or gradio gave it to the page."""

    def is_interrupted(self) -> bool:
        """Whether the user has pressed Interrupt."""

    def has_api(self) -> bool: ...

    def api_accounts(self) -> Mapping[str, str]:
        """Users and passwords of the API; empty where it has none."""

    def on_api_arguments(self, title: str, convert: Callable[[Any], list[Any]]) -> None:
        """Have the ``args`` of the script of that title (lower case) converted before a generation over the API."""

    def add_axes(self, axes: Sequence[tuple[str, type, Any, dict[str, Any]]]) -> None:
        """Add axes (label, type, apply, options) to the X/Y/Z plot, once."""

    def watch_vae_files(self, notices: Notices) -> None:
        """Teach the host's loading and listing of VAEs what it does not know."""

    def vae_files(self) -> Mapping[str, Path]:
        """The VAEs that can be chosen, by name."""

    def vae_folders(self) -> Sequence[Path]: ...

    def is_vae_dropdown(self, component: Any, elem_id: str) -> bool:
        """Whether a component of the page is its dropdown of VAEs."""

    def vae_setting(self) -> Mapping[str, Any]:
        """What that dropdown should show: its ``choices`` and ``value``."""

    def loaded(self) -> HostVAE | None:
        """The VAE of what is loaded now; never loads anything."""

    def checkpoint(self) -> tuple[str, Path] | None:
        """The title of the loaded checkpoint, and its file."""
