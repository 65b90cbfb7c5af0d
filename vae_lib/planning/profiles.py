"""The profiles of this machine's devices: measured and checked once, kept in one file in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vae_lib import __version__
from vae_lib.device import dtype_name, kernels, kinds
from vae_lib.device.kind import NOT_TOLD, Speeds
from vae_lib.device.memory import free_bytes
from vae_lib.engine.compute import Compute, Operation
from vae_lib.errors import InputError
from vae_lib.files import write_atomically
from vae_lib.networks import Network
from vae_lib.planning import calibrate, trust
from vae_lib.planning.profile import Profile
from vae_lib.planning.trust import Standing
from vae_lib.planning.work import Work

FILE = "profiles.json"
Entries = dict[str, dict[str, Any]]


class KnownProfiles:
    """What is known of each device: ``profiles(work)`` is a `Profiles`. Everything may be called from any thread.

    The file holds, by ``device_key``, the speeds and by operation and version of this package what the small check
    found; what in it cannot be used is measured again, and a folder that cannot be written to is no error.
    """

    def __init__(self, path: Path | None = None) -> None:
        """``path`` is the file, by default below XDG_CACHE_HOME, LOCALAPPDATA on Windows, or ~/.cache."""
        self._path = path
        self._entries: Entries | None = None  # read once; then as this process has it

    def __call__(self, work: Work) -> Profile:
        """Measured now (in about a second) if it was not yet.

        The usual speeds where the environment variable VAE_GUARD_CALIBRATE is 0, the device is not here, less than
        160 MiB of it is free, or the measurement fails.
        """
        usual = Profile.usual(work)
        if not kernels.may_measure():
            return usual
        try:
            key = device_key(work.device, work.dtype)
            speeds = self._speeds(key, work.device, work.dtype)
        except (*NOT_TOLD, MemoryError):  # not here, out of memory, or an operation that the device lacks
            return usual
        profile = usual if speeds is None else replace(usual, speeds=speeds)
        standing = self._standing(key, work.operation)
        return profile if standing is None else standing.applied_to(profile)

    def check(self, vae: Network, compute: Compute, report: Callable[[str], None]) -> None:
        """Hold every route against the plain network before the first decode on a device, unless that was done.

        It runs once for each device, driver, dtype, PyTorch and version of this package; it takes a second or two and
        about 200 MiB, and is left for another time where they are not free. A CPU is not checked: PyTorch's kernels
        there are those that this package was tested with. Nor is a network of videos, which has no plain one here; the
        same kernels are checked with a picture's.

        Args:
            vae: weights on the device, in the dtype; with one half, that one is checked.
            report: given a sentence if a route is wrong.
        """
        if kinds.of(compute.device).in_main_memory or not kernels.may_measure() or vae.config.taps > 1:
            return
        operation = Operation.ENCODE if vae.decoder is None else Operation.DECODE
        key = device_key(compute.device, compute.dtype)
        if self._standing(key, operation) is not None:
            return
        work = Work(vae.config, operation, 1, 1, 1, compute.device, compute.dtype)
        standing = trust.small_check(vae, operation, compute, self(work))
        if standing is not None:
            self._keep(key, _checked(operation), asdict(standing))
            if standing.wrong:
                report(trust.warning(standing.wrong, compute))

    def _speeds(self, key: str, device: torch.device, dtype: torch.dtype) -> Speeds | None:
        usual = kinds.of(device).kernels
        name = "speeds" if kernels.of(device, dtype).winograd is usual.winograd else "speeds without Winograd"
        found = _speeds_in(self._stored().get(key, {}).get(name))
        if found is None and free_bytes(device) >= 2 * calibrate.BUDGET_BYTES:
            found = calibrate.measure_speeds(device, dtype)
            self._keep(key, name, found._asdict())
        return found

    def _standing(self, key: str, operation: Operation) -> Standing | None:
        return Standing.read(self._stored().get(key, {}).get(_checked(operation)))

    def _stored(self) -> Entries:
        if self._entries is None:
            self._entries = _read(self._file)
        return self._entries

    def _keep(self, key: str, name: str, value: Mapping[str, Any]) -> None:
        """Of other processes, what the file has by now is kept as well."""
        ours = self._stored()
        entries = {k: {**_read(self._file).get(k, {}), **ours.get(k, {})} for k in {*_read(self._file), *ours, key}}
        entries[key][name] = value
        self._entries = entries
        path = self._file
        with contextlib.suppress(OSError, InputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda aside: aside.write_text(json.dumps(entries, indent=1), encoding="utf-8"))

    @property
    def _file(self) -> Path:
        return self._path or cache_folder() / FILE


PROFILES = KnownProfiles()


def _checked(operation: Operation) -> str:
    return f"{operation.value}, VAE Guard {__version__}"


def cache_folder() -> Path:
    folder = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(folder) if folder else Path(os.path.expanduser("~/.cache"))) / "vae-guard"


def _read(path: Path) -> Entries:
    """Empty where there is nothing that can be read."""
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stored, dict):
        return {}
    return {key: entry for key, entry in stored.items() if isinstance(entry, dict)}


def _speeds_in(entry: Any) -> Speeds | None:
    """Those of an entry, if they are possible ones."""
    try:
        speeds = Speeds(*(float(entry[name]) for name in Speeds._fields))
    except (TypeError, ValueError, KeyError):
        return None
    return speeds if all(math.isfinite(rate) and rate > 0 for rate in speeds) else None


def device_key(device: torch.device, dtype: torch.dtype) -> str:
    """What a measurement holds for: the device, its driver, PyTorch, the dtype, and the CPU's threads."""
    kind = kinds.of(device)
    machine = f"{platform.node()} {platform.processor() or platform.machine()}"
    name = f"{kind.card(device)}, {kind.driver() or machine}"
    return f"{name}; torch {torch.__version__}; {dtype_name(dtype)}; {torch.get_num_threads()} threads"
