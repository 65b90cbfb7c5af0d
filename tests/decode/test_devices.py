"""Devices by name, and their free memory."""

from __future__ import annotations

import pytest
import torch

from tests.decode.helpers import CPU
from vae_lib.decode import choose_device, free_bytes
from vae_lib.decode.devices import release_cached
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
    assert 0 < free_bytes(CPU) <= psutil.virtual_memory().total


def test_release() -> None:
    release_cached(CPU)
