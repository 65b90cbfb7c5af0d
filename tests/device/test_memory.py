"""Devices by name, and their free memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch

from tests.networks.small import CPU
from vae_lib.device import choose_device, free_bytes, free_memory, total_memory
from vae_lib.device import memory as devices
from vae_lib.device.memory import FIRST_PROMISE, largest_block, release_cached, synchronize
from vae_lib.errors import InputError


def test_named_devices() -> None:
    assert choose_device("cpu") == CPU
    for name in ("cdua", "gpu0", ""):
        with pytest.raises(InputError, match="no device called"):
            choose_device(name)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
def test_the_best_there_is(cuda: bool, mps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device().type == ("cuda" if cuda else "mps" if mps else "cpu")
    for name, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert choose_device(name).type == name
        else:
            with pytest.raises(InputError, match=f"no usable {name} device"):
                choose_device(name)
    if cuda:
        with pytest.raises(InputError, match=r"no cuda:3; this machine has 1"):
            choose_device("cuda:3")


def test_known_to_torch_but_not_to_us() -> None:
    with pytest.raises(InputError, match="no usable meta device"):
        choose_device("meta")


def test_free_memory_is_less_than_all_of_it() -> None:
    psutil = pytest.importorskip("psutil")
    free = free_memory(CPU)
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


def stats(reserved: int, active: int, between: int) -> dict[str, int]:
    names = {"reserved": reserved, "active": active, "inactive_split": between}
    return {f"{name}_bytes.all.current": value for name, value in names.items()}


def runtime(kind: str, monkeypatch: pytest.MonkeyPatch, **calls: Any) -> torch.device:
    """A device whose runtime (``torch.<kind>``) has just these calls."""
    monkeypatch.setattr(torch, kind, SimpleNamespace(**calls), raising=False)
    return torch.device(kind)


def fail(*_: object) -> NoReturn:
    raise RuntimeError("The device (Intel(R) Arc(TM) Graphics) doesn't support querying the available free memory.")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_reserved_memory_counts_as_far_as_it_can_be_given_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = runtime(
        kind,
        monkeypatch,
        mem_get_info=lambda device: (1000, 9000),
        memory_stats=lambda device: stats(700, 400, 100),
    )
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert free_memory(device) == 1200
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "garbage_collection_threshold:0.9,expandable_segments:True")
    assert free_memory(device) == 1300


def test_without_statistics_only_the_drivers_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"mem_get_info": lambda device: (1000, 9000)}
    assert free_memory(runtime("cuda", monkeypatch, **calls, memory_stats=fail)) == 1000  # ZLUDA
    assert free_memory(runtime("cuda", monkeypatch, **calls, memory_stats=lambda device: {})) == 1000


def test_where_the_runtime_does_not_tell_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Least of all main memory's number."""
    devices = [
        torch.device("privateuseone"),  # DirectML
        runtime("xpu", monkeypatch, mem_get_info=fail),
        runtime("mps", monkeypatch, driver_allocated_memory=lambda: 100),
        runtime("cuda", monkeypatch, mem_get_info=fail),
        torch.device("meta"),
    ]
    for device in devices:
        assert free_memory(device) is None
        assert free_bytes(device) == FIRST_PROMISE
        assert total_memory(device) is None


def test_all_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil")
    assert total_memory(CPU) == pytest.approx(psutil.virtual_memory().total, rel=0.01)
    assert total_memory(runtime("xpu", monkeypatch, mem_get_info=lambda device: (1000, 9000))) == 9000
    assert total_memory(runtime("mps", monkeypatch, recommended_max_memory=lambda: 1000)) == 1000


def test_free_memory_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"recommended_max_memory": lambda: 1000, "driver_allocated_memory": lambda: 300}
    assert free_memory(runtime("mps", monkeypatch, **calls)) == 700


def test_main_memory_without_proc_and_psutil_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it may be on Windows, which has no ``os.sysconf`` either."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    monkeypatch.setattr("builtins.open", lambda *_, **__: fail_to_open())
    monkeypatch.delattr("os.sysconf", raising=False)
    assert free_memory(CPU) is None


def fail_to_open() -> NoReturn:
    raise FileNotFoundError("/proc/meminfo")


def test_largest_blocks() -> None:
    for kind in ("xpu", "mps", "privateuseone"):
        most = largest_block(torch.device(kind))
        assert most is not None
        assert 3.9 * 2**30 < most < 2**32
    assert largest_block(CPU) is None
    assert largest_block(torch.device("cuda")) is None


def test_release_and_synchronize(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    for kind in ("cuda", "xpu", "mps"):
        device = runtime(
            kind,
            monkeypatch,
            empty_cache=lambda: called.append("empty"),
            synchronize=lambda *device: called.append(device),
        )
        release_cached(device)
        synchronize(device)
    assert called == ["empty", (torch.device("cuda"),), "empty", (torch.device("xpu"),), "empty", ()]
    release_cached(CPU)
    synchronize(CPU)
    release_cached(torch.device("privateuseone"))
    synchronize(torch.device("privateuseone"))
    release_cached(runtime("cuda", monkeypatch, empty_cache=fail))  # a device that is lost


@pytest.mark.parametrize(("used", "calls"), [(1 << 10, 0), (1 << 30, 1)])
def test_much_ram_is_given_back_to_the_system(used: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(devices, "_malloc_trim", lambda: trimmed.append)
    devices.give_back_ram(used)
    assert len(trimmed) == calls
    monkeypatch.setattr(devices, "_malloc_trim", lambda: None)  # macOS, Windows, musl
    devices.give_back_ram(used)
