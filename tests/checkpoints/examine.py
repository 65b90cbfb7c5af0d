"""What the package says of files, in a process of its own: with little memory, and as a user without rights.

``python -m tests.checkpoints.examine FOLDER [--powerless]`` reads the files' names, a JSON list, from standard
input, and writes a JSON list of ``[name, how, outcome, seconds of computing, megabytes that the peak
grew by]``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vae_lib.checkpoints import identify, load_vae
from vae_lib.cli import main as command_line
from vae_lib.errors import VAEGuardError
from vae_lib.ui.library import Library
from vae_lib.ui.standalone import FolderBackend

LEFT = 256 << 20  # bytes of address space beyond what the imports took
CRASH = "CRASH"


def outcome(function: Callable[[Path], object], path: Path) -> str:
    """The sentence, ``fine`` where there is none, or ``CRASH`` with the exception that nobody expected."""
    try:
        function(path)
    except VAEGuardError as error:
        return str(error)
    except Exception as error:
        return f"{CRASH} {type(error).__name__}: {error}"
    return "fine"


def inspect(path: Path) -> None:
    """``python -m vae_lib inspect``, its sentence raised again."""
    errors = io.StringIO()
    with (
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
    ):
        if command_line(["inspect", str(path)]):
            raise VAEGuardError(errors.getvalue().removesuffix("\n"))


def listed() -> list[tuple[str, str]]:
    """The rows of the tab's table of this folder: name, and the sentence."""
    library = Library(FolderBackend(Path()))
    library.rows()
    while library.hashing:  # the tab, too, knows more when the files have been read
        time.sleep(0.01)
    return [(row.name, "fine" if row.problem is None else row.problem) for row in library.rows()]


def _peak_megabytes() -> float:
    found = re.search(r"VmPeak:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def limit_memory() -> None:
    """Let this process take ``LEFT`` bytes more than it has, where that can be told (Linux)."""
    if sys.platform != "linux":
        return
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LEFT, now + LEFT))


def main() -> None:
    folder, *flags = sys.argv[1:]
    names = json.load(sys.stdin)
    os.chdir(folder)  # stays open to a user who may not enter the folders above
    inspect(Path(__file__).parents[2] / "vae_lib" / "data" / "vae_guard_tiny.safetensors")  # imports the rest
    limit_memory()
    if "--powerless" in flags and os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    records = []
    for name in names:
        for function in (identify, load_vae, inspect):
            peak, start = _peak_megabytes(), time.process_time()
            said = outcome(function, Path(name))
            seconds = time.process_time() - start
            records.append((name, function.__name__, said, seconds, _peak_megabytes() - peak))
    start = time.process_time()
    rows = listed()
    records += [(name, "table", said, (time.process_time() - start) / len(rows), 0.0) for name, said in rows]
    json.dump(records, sys.stdout)


if __name__ == "__main__":
    main()
