"""Start and stop: what the host's loading and unloading of the script come to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vae_lib.errors import printable, written
from vae_lib.guard import Guard, Setting
from vae_lib.guard.notices import say
from vae_lib.webui import lost_pages, options_page, panel, request_api, tab, xyz
from vae_lib.webui.api import Routes
from vae_lib.webui.downloads import Downloads
from vae_lib.webui.host import WebUI
from vae_lib.webui.vae_dropdown import VAEDropdown


class Extension:
    """Implements ``guard.host.Callbacks``."""

    def __init__(self, host: WebUI) -> None:
        self.host = host
        self.guard = Guard(host)
        self.downloads = Downloads(host, self.guard.notices)
        self.dropdown = VAEDropdown(host)
        self.routes = Routes(self.guard, host, self.downloads)

    def start(self) -> None:
        self.host.wrap(self.guard)
        self.guard.kept.restore()
        self.guard.videos.restore()
        self.host.watch_vae_files(self.guard.notices)
        self.host.start(self)

    def settings_page(self) -> Sequence[Setting]:
        own = [*options_page.settings(self.host), *self.downloads.settings()]
        for setting in own:
            if not self.host.owns(setting.key):
                self.guard.notices.tell_once(
                    f"owner of {setting.key}",
                    f"another extension owns the setting '{setting.key}': it was left alone, and "
                    f"{written(setting.default)} is used here.",
                )
        return own

    def tabs(self) -> list[tuple[Any, str, str]]:
        return tab.build(tab.HostBackend(self.guard, self.host, self.downloads))

    def before_page(self) -> None:
        self.dropdown.begin()
        xyz.add_axes(self.host)

    def component_made(self, component: Any, elem_id: str) -> None:
        self.dropdown.made(component, elem_id)

    def page_started(self, demo: Any, app: Any) -> None:
        lost_pages.let_go(demo)
        if self.host.has_api():
            self.host.on_api_arguments(request_api.TITLE, request_api.positional)
            self.routes.add(app)

    def model_loaded(self) -> None:
        self.downloads.get_taesd_if_wanted()

    def stop(self) -> None:
        """Undo every patch."""
        if self in _running:
            _running.remove(self)
        self.host.unwrap()
        self.guard.kept.clear()
        self.downloads.close()


_running: list[Any] = []  # what the next load of the script has to stop


def start(host: Any, instead: Callable[[Any, Exception], Any]) -> type | None:
    """Start in a host that ``vae_lib.hosts`` chose; called once each time the host loads the extension's script.

    Args:
        instead: makes the host that is not known, of ``host`` and the error for which we cannot start in it.

    Returns:
        The class that the host shows in txt2img and img2img; None in a host that is not known.
    """
    if host.is_known:
        try:
            return _started(host)
        except Exception as error:  # a version that lacks what only the start asks for
            host = instead(host, error)
    say(host.sentence, sys.stdout)
    _running.append(host)
    host.show_tab(lambda: tab.build_note(host.sentence), stop)
    return None


def _started(host: WebUI) -> type:
    """All of it or nothing: what is not undone by ``stop``, the callbacks, is the last."""
    extension = Extension(host)
    try:
        script = panel.script_class(extension.guard, host)
        extension.start()
    except BaseException:
        extension.stop()
        raise
    _running.append(extension)
    return script


def stop() -> None:
    """Stop what is running; harmless when nothing is."""
    while _running:
        _running.pop().stop()


def running_folder() -> str | None:
    """The folder of the extension while it runs; None before its start and after its end."""
    return str(Path(__file__).parents[2]) if _running else None


def report_second_copy(second: str) -> None:
    """Say on the console that the extension lies in two folders, of which this one is in use."""
    running = running_folder()
    folders = f"{running} is in use, and {second} does nothing"
    say(printable(f"VAE Guard is installed twice: {folders}. Remove one of the two folders."), sys.stdout)
