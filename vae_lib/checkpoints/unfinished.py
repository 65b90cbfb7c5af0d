"""Latents on disk while there is no exact picture of them, so that a picture outlives the process.

One safetensors file a batch, as the sampler left it, with its space and the infotexts in its metadata, and with what
the host still does to the pictures after the decode; ``python -m vae_lib decode`` reads it too. It is removed when the
picture is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lib.catalog import LatentSpace
from vae_lib.checkpoints.latents import load_latents, space_in
from vae_lib.checkpoints.source import open_weights
from vae_lib.checkpoints.write import save_safetensors
from vae_lib.errors import InputError

MB = 10**6
VERSION = "2"  # of the metadata; the first had no version, and the two factors instead of a latent space
_SUFFIX = ".safetensors"
_APPROXIMATE = f"-approximate{_SUFFIX}"
_TIME = re.compile(r"(\d{8}-\d{6}-\d{6})(?:-(\d+))?")  # at the beginning of a file's name
_IMAGE = "image."  # a PNG in a tensor of bytes


@dataclass(frozen=True)
class Afterwards:
    """What is done to a batch's pictures after its decode, as the host had it when the decode began.

    Attributes:
        values: the host's own affair, and such as JSON can hold.
        images: by name; the same image may stand there several times.
        not_repeated: steps that only the generation itself could do: other extensions' scripts, by their titles.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Sequence[Image.Image]] = field(default_factory=dict)
    not_repeated: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Latents:
    """A batch of latents as the sampler left it, and all that its pictures need.

    Attributes:
        tensor: (B, C, h, w), scaled, on the CPU.
        space: whose latents they are.
        model_name: the checkpoint's.
        infotexts: one per picture, or empty.
    """

    tensor: Tensor
    space: LatentSpace
    model_name: str
    infotexts: Sequence[str] = ()
    created: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    afterwards: Afterwards = field(default_factory=Afterwards)


def write(folder: Path, latents: Latents, most_mb: int) -> Path | None:
    """Write a batch; None when ``most_mb`` is too little for it. The oldest files go when it gets too much in all.

    Raises:
        InputError: when the disk is full or the folder cannot be written to.
    """
    tensors, where = _with_images(latents)
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if need > most_mb * MB:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    _make_room(folder, most_mb * MB - need)
    afterwards = latents.afterwards
    metadata = {
        # what the command line puts into the picture
        "parameters": latents.infotexts[0] if latents.infotexts else "",
        "infotexts": json.dumps(list(latents.infotexts)),
        "model": latents.model_name,
        "version": VERSION,
        **latents.space.metadata(),
        "created": latents.created.isoformat(),
        "afterwards": json.dumps([afterwards.values, where, list(afterwards.not_repeated)]),
    }
    path = _free_name(folder, latents.created)
    save_safetensors(tensors, path, metadata)
    return path


def mark_approximate(path: Path) -> Path:
    """Note that there is a picture of these latents, but no exact one; the file's new name.

    Raises:
        OSError: when it cannot be renamed.
    """
    renamed = path.with_name(path.name.removesuffix(_SUFFIX) + _APPROXIMATE)
    path.rename(renamed)
    return renamed


def is_approximate(path: Path) -> bool:
    """Whether there is a picture of these latents, if no exact one."""
    return path.name.endswith(_APPROXIMATE)


def found(folder: Path) -> tuple[list[tuple[Path, Latents]], list[str]]:
    """What is in the folder, the latest first, and a sentence for each file that cannot be read.

    Without the images, which only a decode needs.
    """
    items, problems = [], []
    try:
        paths = _latest_first(folder)
    except OSError as error:
        return [], [f"The folder {folder} cannot be looked into: {error.strerror or error}."]
    for path in paths:
        if path.name.startswith("."):
            continue  # a write that was cut short
        try:
            items.append((path, read(path, images=False)))
        except InputError as error:
            problems.append(str(error))
    return items, problems


def read(path: Path, images: bool = True) -> Latents:
    """One file. Metadata that is missing or odd is done without: the latents matter more.

    Raises:
        InputError: when there are no latents in it that can be decoded.
    """
    tensor, metadata = load_latents(path)
    try:
        space = space_in(metadata) or LatentSpace(1.0)
    except InputError:
        space = LatentSpace(1.0)
    try:
        infotexts = [_whole(text) for text in json.loads(metadata["infotexts"])]
    except (KeyError, TypeError, ValueError, RecursionError):
        infotexts = []
    try:
        created = datetime.fromisoformat(metadata["created"]).astimezone(timezone.utc)
    except (KeyError, ValueError, OverflowError, OSError):  # a year that no clock knows
        created = _changed(path)
    afterwards = _afterwards(path, metadata, images)
    return Latents(tensor, space, _whole(metadata.get("model", "?")), infotexts, created, afterwards)


def _whole(text: object) -> str:
    """A text without halves of letters, with which no page and no answer can be written."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _free_name(folder: Path, created: datetime) -> Path:
    """Beginning with the time, and behind all that are there: two batches may come within one tick of a coarse clock,
    and the clock may be set back."""
    now = f"{created.astimezone():%Y%m%d-%H%M%S-%f}"
    names: list[str] = []
    with contextlib.suppress(OSError):  # the write says why
        names = os.listdir(folder)
    last, number = max((_moment(name) for name in names if _TIME.match(name)), default=("", 0))
    return folder / f"{now if now > last else f'{last}-{number + 1}'}{_SUFFIX}"


def _with_images(latents: Latents) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors to write, and of each list of images which of them it is made of."""
    tensors, numbers = {"latents": latents.tensor}, dict[int, int]()
    where: dict[str, list[int]] = {}
    for name, images in latents.afterwards.images.items():
        for image in images:
            if id(image) not in numbers:
                numbers[id(image)] = len(numbers)
                tensors[f"{_IMAGE}{numbers[id(image)]}"] = _as_png(image)
            where.setdefault(name, []).append(numbers[id(image)])
    return tensors, where


def _as_png(image: Image.Image) -> Tensor:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # a picture is waiting for it
    return torch.from_numpy(np.frombuffer(buffer.getbuffer(), dtype=np.uint8).copy())


def _afterwards(path: Path, metadata: Mapping[str, str], images: bool) -> Afterwards:
    try:
        values, where, not_repeated = json.loads(metadata["afterwards"])
        titles = [_whole(title) for title in not_repeated]
        wanted = {number for numbers in where.values() for number in numbers}
        if not images:
            return Afterwards(dict(values), {}, titles)
        with open_weights(path) as file:
            made = {number: _of_png(file.read(f"{_IMAGE}{number}")) for number in wanted}
        listed = {str(name): [made[number] for number in numbers] for name, numbers in where.items()}
        return Afterwards(dict(values), listed, titles)
    except Exception:  # whatever is wrong with it
        return Afterwards()


def _of_png(png: Tensor) -> Image.Image:
    image = Image.open(io.BytesIO(png.numpy().tobytes()), formats=("PNG",))  # others run programs, as EPS does
    image.load()
    return image


def _latest_first(folder: Path) -> list[Path]:
    """Their names begin with the time. A folder that is not there is empty, and one that is closed to us an OSError."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    names = sorted((name for name in names if name.endswith(_SUFFIX)), key=_moment, reverse=True)
    return [folder / name for name in names]


def _moment(name: str) -> tuple[str, int]:
    """The time in a file's name, and the number of those within one tick."""
    match = _TIME.match(name)
    return (name, 1) if match is None else (match[1], int(match[2] or 1))


def _changed(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    except OSError:  # gone, or closed to us, since it was read
        return datetime.now(timezone.utc)


def _make_room(folder: Path, most: int) -> None:
    """Remove the oldest files until ``most`` bytes are left, and what cut-short writes left behind.

    What cannot be removed stays: then the write that follows says why.
    """
    kept = 0
    for path, size in _sizes(folder):
        kept += size
        if kept > most:
            with contextlib.suppress(OSError):
                path.unlink()


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    with contextlib.suppress(OSError):
        for path in _latest_first(folder):
            with contextlib.suppress(OSError):
                yield path, path.stat().st_size
