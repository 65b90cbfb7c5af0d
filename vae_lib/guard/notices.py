"""What the user is told: in the console, below the picture, and as a notice in the page."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from vae_lib.errors import Aside, PlanError, VAEGuardError, printable
from vae_lib.guard.generation import Generations
from vae_lib.guard.host import Host
from vae_lib.guard.layers import Altered

log = logging.getLogger("vae_guard")


class Notices:
    """What was shown in this session of the WebUI."""

    def __init__(self, host: Host, generations: Generations) -> None:
        self._host, self._generations = host, generations
        self._told: set[str] = set()
        self._report = ""

    def tell(self, message: str, *, warning: bool = False, page: bool = True) -> None:
        """One line in the console; below the picture and in the page too if a generation is running for the page."""
        message = _signed(message)
        say(message, sys.stderr if warning else sys.stdout)
        current = self._generations.current
        if current is not None and current.p is not None:
            self._host.comment(current.p, message)
        if page:
            self._host.notify(message, warning=warning)

    def show_again(self, message: str) -> None:
        """A warning that was shown before, in the page alone."""
        self._host.notify(_signed(message), warning=True)

    def tell_once(self, key: str, message: str, *, warning: bool = True) -> None:
        """As `tell`, but only the first time in this session."""
        if key not in self._told:
            self._told.add(key)
            self.tell(message, warning=warning)

    def own_failure(self, what: str, error: BaseException, report: str) -> None:
        """Our own code failed: say once that the host's is used; ``report`` goes to the console and the tab.

        Once for each layer that somebody changed, and for each reason to stand aside. That no route was possible is
        reported for each batch of pictures.
        """
        current = self._generations.current
        if isinstance(error, PlanError):
            if current is None or not current.fell_to_host:
                self.tell(_used_instead(error), warning=True)
            return
        key = f"{what}:{error if isinstance(error, (Altered, Aside)) else type(error).__name__}"
        if key in self._told:
            return
        if isinstance(error, VAEGuardError):
            self.tell_once(key, _used_instead(error))
            return
        self.tell_once(
            key,
            f"could not {what} ({type(error).__name__}: {error}); the WebUI's own code was used instead. "
            "Please report this with the text in the console, or in the tab VAE > Unfinished.",
        )
        self._report = report
        say(report, sys.stderr)

    def last_report(self) -> str:
        """The report of the latest failure of our own in this session, ready to copy; "" when there was none."""
        return self._report


def _used_instead(error: VAEGuardError) -> str:
    return f"{error} The WebUI's own code was used instead."


def _signed(message: str) -> str:
    message = printable(message)
    return message if message.startswith("VAE Guard ") else f"VAE Guard: {message}"


def say(text: str, stream: TextIO) -> None:
    """A console that cannot show a letter (Windows' code pages) shows its number."""
    try:
        print(text, file=stream)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
