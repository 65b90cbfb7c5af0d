"""File names: what a name on the hub says about the file, and under which name it is saved here."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

SAFE_EXTENSIONS = (".safetensors", ".sft")  # Black Forest Labs call theirs ae.sft
PICKLE_EXTENSIONS = (".ckpt", ".pt", ".pth", ".bin")
WEIGHTS_EXTENSIONS = (*SAFE_EXTENSIONS, *PICKLE_EXTENSIONS)

# Leaves room below the 255 bytes that file systems allow, for the suffixes of staging and quarantine.
MAX_NAME_BYTES = 200

# Not allowed in names on Windows, which also reserves these names for devices, with any extension.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)

_VARIANT = re.compile(r"[._-](fp16|bf16|fp32|non_ema|ema)$", re.IGNORECASE)

# Names that say only what kind of file it is, not which one.
_GENERIC_STEMS = frozenset(
    {
        "diffusion_pytorch_model",
        "pytorch_model",
        "model",
        "vae",
        "ae",
        "autoencoder",
        "weights",
        "checkpoint",
        "last",
        "first_stage_model",
    }
)


def extension(name: str) -> str:
    """The extension in lower case, with its dot; empty when there is none."""
    return PurePosixPath(name).suffix.lower()


def is_weights(name: str) -> bool:
    return extension(name) in WEIGHTS_EXTENSIONS


def is_pickle(name: str) -> bool:
    """Files in PyTorch's own formats are pickles (or zips of one), and loading a pickle may run code."""
    return extension(name) in PICKLE_EXTENSIONS


def variant(name: str) -> str:
    """``fp16`` of ``diffusion_pytorch_model.fp16.safetensors``; empty for the plain file."""
    match = _VARIANT.search(PurePosixPath(name).stem)
    return match[1].lower() if match else ""


def is_plain_path(path: str) -> bool:
    """True for a relative path that stays in its repository on every operating system."""
    return bool(path) and not (
        path.startswith("/")
        or "\\" in path
        or re.match(r"[A-Za-z]:", path)
        or any(part in ("", ".", "..") for part in path.split("/"))
        or any(unicodedata.category(char) == "Cc" for char in path)
    )


def safe_name(name: str) -> str:
    """One plain file name out of anything: no folders, nothing that Windows reserves, 200 bytes at most.

    Letters of every script are kept, in Unicode's composed form. The extension survives shortening.
    """
    name = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    # Control, formatting (bidirectional overrides hide an extension), surrogates, line separators.
    name = "".join(c for c in name if c in "\u200c\u200d" or unicodedata.category(c) not in _INVISIBLE)
    name = _FORBIDDEN.sub("_", name).lstrip(". ").rstrip(". ")
    suffix = PurePosixPath(name).suffix
    stem = name[: len(name) - len(suffix)].rstrip(". ") or "file"
    suffix = suffix if suffix.lower() in WEIGHTS_EXTENSIONS else _cut(suffix, 20)
    if _RESERVED.fullmatch(stem.split(".")[0].rstrip()):
        stem = f"_{stem}"
    return _cut(stem, MAX_NAME_BYTES - len(suffix.encode())) + suffix


_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _cut(text: str, size: int) -> str:
    """The longest beginning of ``text`` that is valid UTF-8 in ``size`` bytes."""
    return text.encode("utf-8", "ignore")[: max(size, 0)].decode("utf-8", "ignore").rstrip(". ")


def target_name(repo_id: str, path: str) -> str:
    """The readable name under which a file of a repository is saved.

    A name that says nothing (``diffusion_pytorch_model.fp16.safetensors``) becomes the repository's name,
    with what distinguishes the file in it (``-vae`` for the folder ``vae``, ``-fp16`` for the variant).
    ``.bin`` and ``.pth`` become ``.pt``, and ``.sft`` becomes ``.safetensors``: the WebUI's VAE dropdown lists only
    these two.
    """
    parts = PurePosixPath(path)
    stem, suffix = parts.stem, parts.suffix.lower()
    suffix = {".bin": ".pt", ".pth": ".pt", ".sft": ".safetensors"}.get(suffix, suffix)
    kind = variant(path)
    plain = stem[: len(stem) - len(kind) - 1] if kind else stem
    if plain.lower() in _GENERIC_STEMS:
        stem = repo_id.split("/")[-1]
        folder = "" if str(parts.parent) == "." else parts.parent.name
        if folder and folder.lower() not in stem.lower():
            stem += f"-{folder}"
        if kind and kind not in stem.lower():
            stem += f"-{kind}"
    return safe_name(stem + suffix)


def numbered(name: str, number: int) -> str:
    """``name-2.safetensors`` for 2."""
    suffix = PurePosixPath(name).suffix
    return f"{name[: len(name) - len(suffix)]}-{number}{suffix}"
