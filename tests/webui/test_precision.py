"""The dtype that a VAE was found to need outlives the WebUI's process; a report names no user's folder."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.decode.helpers import SMALL, latents_for, network
from vae_lib.decode import Ladder, Outcome
from vae_lib.networks import AutoencoderKL

MODEL = SimpleNamespace()


@pytest.fixture
def vae_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's modules, as far as they are asked: a data folder, and a loaded VAE's file."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    members: dict[str, dict[str, Any]] = {
        "modules.paths": {"data_path": str(tmp_path)},
        "modules.sd_vae": {"loaded_vae_file": str(path)},
        "modules.hashes": {"sha256": lambda name, title: hashlib.sha256(Path(name).read_bytes()).hexdigest()},
        "modules.infotext_utils": {"PasteField": object},
        "modules.scripts": {"Script": object, "AlwaysVisible": object()},
        "modules": {},
    }
    for name, values in members.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
        _, _, child = name.partition(".")
        members["modules"].update({child: module} if child else {})
    return path


@pytest.fixture
def precision(vae_file: Path) -> Any:
    return importlib.import_module("vae_lib.webui.precision")


@pytest.fixture
def report(vae_file: Path) -> Any:
    return importlib.import_module("vae_lib.webui.report")


def overflowed() -> Outcome:
    """An outcome that had to be repeated in fp32."""
    vae = AutoencoderKL(SMALL).requires_grad_(False)
    vae.load_state_dict(network().state_dict())
    assert vae.decoder is not None
    vae.decoder.conv_out.bias.fill_(3.4e38)  # more than bfloat16's largest number
    return Ladder(vae, dtype=torch.bfloat16, budget=lambda device: 1 << 40).decode(latents_for(SMALL, 4, 3))


def test_the_dtype_is_remembered_for_this_file_only(vae_file: Path, precision: Any) -> None:
    assert precision.known(MODEL) is None
    precision.remember(MODEL, overflowed())
    assert precision.known(MODEL) == torch.float32  # read from the disk: nothing is kept in memory
    vae_file.write_bytes(b"other weights")
    assert precision.known(MODEL) is None
    moved = vae_file.with_name("b.safetensors")
    moved.write_bytes(b"weights")
    sys.modules["modules.sd_vae"].loaded_vae_file = str(moved)
    assert precision.known(MODEL) == torch.float32
    assert [path.name for path in precision.file().parent.glob("*precision*")] == [precision.file().name]


def test_where_the_host_does_not_hash_size_and_time_tell_files_apart(
    vae_file: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["modules.hashes"], "sha256", lambda name, title: None)
    precision.remember(MODEL, overflowed())
    assert precision.known(MODEL) == torch.float32
    vae_file.write_bytes(b"other weights")
    assert precision.known(MODEL) is None


def test_a_checkpoints_own_vae_goes_by_the_checkpoints_hash(vae_file: Path, precision: Any) -> None:
    sys.modules["modules.sd_vae"].loaded_vae_file = None  # type: ignore[attr-defined]
    checkpoints = [SimpleNamespace(sd_checkpoint_info=SimpleNamespace(sha256=name)) for name in ("a", "b")]
    precision.remember(checkpoints[0], overflowed())
    assert [precision.known(model) for model in checkpoints] == [torch.float32, None]


def test_a_decode_without_overflow_is_not_noted(precision: Any) -> None:
    plain = Ladder(network(), budget=lambda device: 1 << 40).decode(latents_for(SMALL, 4, 3))
    precision.remember(MODEL, plain)
    assert not precision.file().exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 5}', "\u00e9" * 10])
def test_a_damaged_file_is_written_anew(precision: Any, content: str) -> None:
    precision.file().write_text(content, encoding="latin-1")
    assert precision.known(MODEL) is None
    precision.remember(MODEL, overflowed())
    assert precision.known(MODEL) == torch.float32


def test_a_report_calls_the_users_home_by_no_name(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/somebody")
    monkeypatch.setenv("USERPROFILE", "/users/somebody")
    text = report.text(ValueError("cannot read /users/somebody/x: busy"), "encode", (1,), network())
    assert "cannot read ~/x: busy" in text
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("USERPROFILE", "/")
    assert "a/b" in report.text(ValueError("a/b"), "encode", (1,), network())


def test_a_report_is_complete_and_names_no_folder(report: Any) -> None:
    try:
        open("/home/somebody/private/file.bin")  # noqa: SIM115
    except OSError as error:
        text = report.text(error, "decode", (1, 4, 64, 64), network())
    for part in (
        "PyTorch",
        "decode of (1, 4, 64, 64)",
        "torch.float32 on cpu",
        "FileNotFoundError",
        "test_precision.py:",
    ):
        assert part in text
    assert "somebody" not in text
    assert str(Path(__file__).parent) not in text
