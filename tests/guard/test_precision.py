"""The dtype that a VAE was found to need outlives the WebUI's process; a report names no user's folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from tests.networks.small import SMALL, latents_for, network, own_network
from vae_lib.decode import Ladder, Outcome
from vae_lib.guard import report
from vae_lib.guard.precision import Precision, identity
from vae_lib.planning import Planner


def hashed(path: str, key: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def precision(tmp_path: Path) -> Precision:
    return Precision(tmp_path)


def overflowed() -> Outcome:
    """An outcome that had to be repeated in fp32."""
    vae = own_network()
    assert vae.decoder is not None
    vae.decoder.conv_out.bias.fill_(3.4e38)  # more than bfloat16's largest number
    return Ladder(vae, dtype=torch.bfloat16, planner=Planner(lambda device: 1 << 40)).decode(latents_for(SMALL, 4, 3))


def test_the_dtype_is_remembered_for_these_weights_only(precision: Precision) -> None:
    assert precision.is_empty()
    precision.remember("a", overflowed())
    assert precision.known("a") == torch.float32
    assert Precision(precision.file.parent).known("a") == torch.float32  # nothing is kept in memory
    assert precision.known("b") is None
    assert not precision.is_empty()
    assert [path.name for path in precision.file.parent.iterdir()] == [precision.file.name]


def test_the_same_weights_are_known_by_their_hash(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    assert identity(str(first), hashed) == identity(str(second), hashed)
    first.write_bytes(b"other weights")
    assert identity(str(first), hashed) != identity(str(second), hashed)
    first.unlink()
    assert identity(str(first), hashed) == str(first)


def test_where_the_host_does_not_hash_size_and_time_tell_files_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    before = identity(str(path), lambda path, key: None)
    assert before == identity(str(path), lambda path, key: None)
    os.utime(path, ns=(1, 1))
    assert before != identity(str(path), lambda path, key: None)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[1]", "{", '{"x": 5}', "\u00e9" * 10])
def test_a_damaged_file_is_written_anew(precision: Precision, content: str) -> None:
    precision.file.write_text(content, encoding="latin-1")
    assert precision.known("a") is None
    precision.remember("a", overflowed())
    assert precision.known("a") == torch.float32


def test_a_report_calls_the_users_home_by_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/somebody")
    monkeypatch.setenv("USERPROFILE", "/users/somebody")
    text = report.text(ValueError("cannot read /users/somebody/x: busy"), "encode", (1,), network())
    assert "cannot read ~/x: busy" in text
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("USERPROFILE", "/")
    assert "a/b" in report.text(ValueError("a/b"), "encode", (1,), network())


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (r"no file '\\server\share\somebody\x.pt'", "no file <path>"),
        (r"no file '\\\\server\\somebody\\x.pt'.", "no file <path>."),
        ('cannot open "/data/o\'somebody/x.pt": busy', "cannot open <path>: busy"),
        ("cannot mmap from </data/somebody/x y.pt>: no memory (12)", "cannot mmap from <path>: no memory (12)"),
        ("open file failed, file path: /data/some body/x.pt", "open file failed, file path: <path>"),
        ("cannot read C:\\Users\\some body\\x.pt: busy", "cannot read <path>: busy"),
        ("1/2 of a / b, and/or 3 it/s", "1/2 of a / b, and/or 3 it/s"),
    ],
)  # fmt: skip
def test_paths_of_every_form_stay_out_of_a_report(said: str, shown: str) -> None:
    assert f"ValueError: {shown}\n" in report.text(ValueError(said), "decode", (1,), network())


def test_a_report_is_complete_and_names_no_folder() -> None:
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
