"""Windows' file systems imitated: what this process has open or mapped cannot be renamed, replaced or removed there."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

IN_USE = "The process cannot access the file because it is being used by another process"


def is_in_use(path: Any) -> bool:
    """Whether this process has the file open or mapped (safetensors maps what it loads)."""
    real = os.path.realpath(path)
    descriptors = Path("/proc/self/fd")
    opened = [os.path.realpath(entry) for entry in descriptors.iterdir()]
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return real in opened or any(line.endswith(f" {real}") for line in mapped.splitlines())


def _refusing(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*paths: Any, **options: Any) -> Any:
        for path in paths:
            inside = options.get("dir_fd")
            place = path if inside is None else f"/proc/self/fd/{inside}/{path}"
            if isinstance(path, (str, os.PathLike)) and os.path.isfile(place) and is_in_use(place):
                raise PermissionError(errno.EACCES, IN_USE, str(path))
        return real(*paths, **options)

    return call


@contextmanager
def files_in_use_stay() -> Iterator[None]:
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("only Linux tells what is mapped")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "remove"):
            patch.setattr(os, name, _refusing(getattr(os, name)))
        for name in ("rename", "replace", "unlink"):  # whose functions of os are fixed before Python 3.11
            patch.setattr(Path, name, _refusing(getattr(Path, name)))
        yield


@contextmanager
def names_without_case() -> Iterator[None]:
    """A name that differs from one that is there in case only is that one."""
    lstat = os.lstat

    def real(path: Any) -> Any:
        if not isinstance(path, (str, os.PathLike)):
            return path
        folder, name = os.path.split(os.fspath(path))
        try:
            lstat(path)
        except FileNotFoundError:
            with suppress(OSError):
                for other in os.listdir(folder or "."):
                    if other.casefold() == name.casefold():
                        return os.path.join(folder, other)
        return path

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "stat"), (os, "lstat"), (os, "open"), (io, "open"), (builtins, "open")):
            call = getattr(module, name)
            taking = lambda path, *rest, call=call, **options: call(real(path), *rest, **options)  # noqa: E731
            patch.setattr(module, name, taking)
        patch.setattr(os.path, "lexists", lambda path: _is_there(os.lstat, path))
        patch.setattr(os.path, "exists", lambda path: _is_there(os.stat, path))
        yield


def _is_there(look: Callable[..., Any], path: Any) -> bool:
    try:
        look(path)
    except (OSError, ValueError):
        return False
    return True
