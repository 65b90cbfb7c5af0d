"""What a file is when it is no weights file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vae_lib.checkpoints import load_vae, read_header
from vae_lib.errors import CheckpointError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:735e4c3a447a32\nsize 334641190\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (LFS, "Git LFS pointer.*download the real file"),
        (b"\n <!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\xef\xbb\xbf<html><title>Login</title>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b'{\n  "_class_name": "AutoencoderKL"\n}', "JSON text"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "a picture"),
        (b"Rar!\x1a\x07\x00 and more", "an archive"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00", "an archive"),
        (b"hello world, these are no weights", "no readable header|not a weights file"),
        (b"short", "no readable header|not a weights file"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".vae.pt", ""])
def test_other_content(content: bytes, sentence: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=sentence) as raised:
        load_vae(path)
    assert str(raised.value).startswith(path.name)
    assert "\n" not in str(raised.value)


def test_the_content_counts_and_not_the_extension(vae_file: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "vae.ckpt"
    renamed.write_bytes(vae_file.read_bytes())
    assert read_header(renamed).format == "safetensors"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no file .*gone"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be read|There is no file"):
        read_header(tmp_path / ("x" * 5000))


def test_a_folder_names_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder.*choose the weights file in it"):
        read_header(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"choose vae/diffusion_pytorch_model\.safetensors in it"):
        read_header(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(vae_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "locked.safetensors"
    path.write_bytes(vae_file.read_bytes())
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a thing of POSIX")
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_pipe_or_device_is_refused_without_opening_it(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    link = tmp_path / "model.safetensors"
    link.symlink_to(target)
    with pytest.raises(CheckpointError, match="device or a pipe"):
        read_header(link)
