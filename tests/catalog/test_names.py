"""Names from the hub become names that every operating system takes, and that say what the file is."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vae_lib.catalog.names import MAX_NAME_BYTES, is_plain_path, numbered, safe_name, target_name, variant


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("sdxl_vae.safetensors", "sdxl_vae.safetensors"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\Windows\\evil.pt", "evil.pt"),
        ("/absolute.ckpt", "absolute.ckpt"),
        ("..", "file"),
        ("", "file"),
        (".hidden.safetensors", "hidden.safetensors"),
        ("...safetensors", "safetensors"),
        ("CON.safetensors", "_CON.safetensors"),
        ("nul", "_nul"),
        ("com1.vae.pt", "_com1.vae.pt"),
        ("lpt\u00b9.pt", "_lpt\u00b9.pt"),
        ("console.pt", "console.pt"),
        ("a\x00b\nc\x7f.pt", "abc.pt"),
        ("what? <why>.pt", "what_ _why_.pt"),
        ("trailing. .safetensors", "trailing.safetensors"),
        ("my vae (final).safetensors", "my vae (final).safetensors"),
        ("アニメ VAE ß.safetensors", "アニメ VAE ß.safetensors"),
        ("cafe\u0301.pt", "café.pt"),
        ("gpj\u202esrotesnefas.exe", "gpjsrotesnefas.exe"),
    ],
)
def test_safe_name(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@pytest.mark.parametrize("letter", ["a", "é", "ア", "😀"])
def test_long_names_keep_their_extension_and_whole_letters(letter: str) -> None:
    name = safe_name(letter * 300 + ".safetensors")
    assert name.endswith(letter + ".safetensors")
    assert MAX_NAME_BYTES - 4 < len(name.encode()) <= MAX_NAME_BYTES


@pytest.mark.slow
@given(st.text(max_size=400))
@example("." * 300)
@example("a." * 150 + "." + "b" * 300)
@example("NUL." + "x" * 300)
def test_any_text_becomes_one_plain_name(text: str) -> None:
    name = safe_name(text)
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert name[-1] not in ". "
    assert PurePosixPath(name).name == name == PureWindowsPath(name).name
    assert not PureWindowsPath(name).is_reserved()
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in name)
    assert len(name.encode()) <= MAX_NAME_BYTES + 1
    assert safe_name(name) == name


def test_a_name_of_any_length_can_be_created(tmp_path: Path) -> None:
    name = safe_name("ア" * 300 + ".safetensors") + ".quarantined.reason.txt"
    (tmp_path / name).write_text("x")


@pytest.mark.parametrize(
    ("repo_id", "path", "name"),
    [
        ("stabilityai/sdxl-vae", "sdxl_vae.safetensors", "sdxl_vae.safetensors"),
        (
            "madebyollin/sdxl-vae-fp16-fix",
            "diffusion_pytorch_model.safetensors",
            "sdxl-vae-fp16-fix.safetensors",
        ),
        ("acme/sd-model", "vae/diffusion_pytorch_model.safetensors", "sd-model-vae.safetensors"),
        ("acme/sd-model", "vae/diffusion_pytorch_model.fp16.safetensors", "sd-model-vae-fp16.safetensors"),
        ("acme/anime", "vae/kl-f8-anime2.ckpt", "kl-f8-anime2.ckpt"),
        ("acme/old", "diffusion_pytorch_model.bin", "old.pt"),
        ("acme/old", "VAE.PTH", "old.pt"),
        ("acme/flux", "ae.safetensors", "flux.safetensors"),
        ("acme/flux", "flux1-ae.sft", "flux1-ae.safetensors"),
        ("acme/x", "../../../up.safetensors", "up.safetensors"),
    ],
)
def test_target_name(repo_id: str, path: str, name: str) -> None:
    assert target_name(repo_id, path) == name


def test_variant() -> None:
    assert variant("vae/diffusion_pytorch_model.fp16.safetensors") == "fp16"
    assert variant("sdxl-vae-fp16-fix.safetensors") == ""


def test_numbered() -> None:
    assert numbered("a.vae.pt", 2) == "a.vae-2.pt"


@pytest.mark.parametrize("path", ["a.pt", "vae/a.pt", "ä b/c.pt", "a..b.pt"])
def test_plain_paths(path: str) -> None:
    assert is_plain_path(path)


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a\\b", "C:/a", "c:a", "a\nb", "a/"])
def test_paths_that_leave_their_folder_somewhere(path: str) -> None:
    assert not is_plain_path(path)
