"""What a file is when it is no weights file."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
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


def gguf(tensors: Mapping[str, int]) -> bytes:
    """A file of that format with some metadata, and tensors of these types."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    words = struct.pack("<IQ", 8, 2) + text("a") + text("b")
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("vae"),
        text("general.file_type") + struct.pack("<II", 4, 7),
        text("tokens") + struct.pack("<I", 9) + words,
        text("sizes") + struct.pack("<IIQ", 9, 4, 3) + bytes(12),
    ]
    infos = [text(name) + struct.pack("<IQQIQ", 2, 32, 4, kind, 0) for name, kind in tensors.items()]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries))
    return head + b"".join(entries) + b"".join(infos)


_VAE = {"decoder.conv_in.weight": 1, "decoder.up.0.block.0.conv1.weight": 8, "decoder.mid.attn_1.q.weight": 8}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (gguf(_VAE), "a VAE in a GGUF file (Q8_0 and F16)"),
        (gguf({"double_blocks.0.img_attn.qkv.weight": 12}), "a diffusion model without its VAE in a GGUF file (Q4_K)"),
        (gguf({}), "a GGUF file"),
        (gguf(_VAE)[:-9], "a GGUF file"),  # cut short
        (b"GGUF" + b"\xff" * 60, "a GGUF file"),
        (b"GGUF", "a GGUF file"),
    ],
)
def test_what_is_in_a_gguf_file_and_how_it_is_quantised(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        load_vae(path)
    said = f"x.gguf is {what}, a format that VAE Guard does not read; choose the VAE in .safetensors."
    assert str(raised.value) == said


def test_sft_is_another_name_of_safetensors(vae_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "ae.sft"
    path.write_bytes(vae_file.read_bytes())
    assert read_header(path).format == "safetensors"
    path.write_bytes(vae_file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"ae\.sft is cut short"):
        read_header(path)


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
