"""Reading pictures by the range that they really have."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vae_lib.cli.pictures import read_picture
from vae_lib.errors import InputError

RAMP = np.linspace(0, 1, 64, dtype=np.float64).reshape(8, 8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_shades(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray((RAMP * 65535).round().astype(np.uint16)).save(path)
    found = read_picture(path, 8)
    assert found.shape == (1, 3, 8, 8)
    for channel in found[0]:
        torch.testing.assert_close(channel, torch.from_numpy(RAMP * 2 - 1).float(), atol=1e-4, rtol=0)


def test_16_bit_grey_in_big_endian(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (8, 8), (RAMP * 65535).round().astype(">u2").tobytes())
    image.save(tmp_path / "x.tif")
    found = read_picture(tmp_path / "x.tif", 8)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(RAMP * 2 - 1).float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("low", [0.0, 0.25])
def test_float_pictures_in_0_to_1(low: float, tmp_path: Path) -> None:
    Image.fromarray((low + RAMP * (1 - low)).astype(np.float32)).save(tmp_path / "x.tif")
    found = read_picture(tmp_path / "x.tif", 8)[0, 1]
    torch.testing.assert_close(found, torch.from_numpy((low + RAMP * (1 - low)) * 2 - 1).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (RAMP.astype(np.float32) * 255, "from 0 to 255"),
        (RAMP.astype(np.float32) - 0.5, "from -0.5 to 0.5"),
        (np.full((8, 8), np.nan, dtype=np.float32), "NaN"),
        ((RAMP * 100_000).astype(np.int32), "from 0 to 100000"),
        ((RAMP * 100_000).astype(np.int32) - 5, "from -5 to 99995"),
    ],
)
def test_other_ranges_are_refused(numbers: np.ndarray, said: str, tmp_path: Path) -> None:
    Image.fromarray(numbers).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=said):
        read_picture(tmp_path / "x.tif", 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_pictures_are_as_before(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray((RAMP * 255).round().astype(np.uint8)).convert(mode)
    path = tmp_path / ("x.png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA") else "x.tif")
    image.save(path)
    with Image.open(path) as again:
        wanted = torch.from_numpy(np.array(again.convert("RGB"), dtype=np.float32)) / 127.5 - 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_picture(path, 8)[0], wanted.permute(2, 0, 1))


def _ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A folder of TIFF's: (tag, type, count, value)."""
    packed = (struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + b"".join(packed) + bytes(4)


TURNED = (0x0112, 3, 1, struct.pack("<H", 6))  # the picture's right side is up
ODD_ENTRIES = {
    "a resolution in letters": (0x011A, 2, 3, b"72"),
    "a folder in letters": (0x8769, 2, 3, b"ab"),
    "a folder before the file": (0x8769, 9, 1, struct.pack("<i", -5)),
    "a folder behind the file": (0x8769, 4, 1, struct.pack("<I", 99_999_999)),
    "a negative size": (0x1001, 8, 1, struct.pack("<h", -5)),
    "numbers for XML": (0x02BC, 3, 1, struct.pack("<H", 6)),
    "an unknown type": (0xABCD, 99, 4, b"abcd"),
}


def _photo() -> Image.Image:
    """Taller than wide, its left half black."""
    photo = Image.new("RGB", (16, 24), "white")
    photo.paste("black", (0, 0, 8, 24))
    return photo


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("odd", ODD_ENTRIES.values(), ids=ODD_ENTRIES)
def test_odd_metadata_do_not_matter(odd: tuple[int, int, int, bytes], form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form.lower()}"
    lying = _photo().transpose(Image.Transpose.ROTATE_90)
    if form == "TIFF":
        lying.save(path)
        data = path.read_bytes()
        start = struct.unpack_from("<I", data, 4)[0]
        count = struct.unpack_from("<H", data, start)[0]
        known = [struct.unpack_from("<HHI4s", data, start + 2 + 12 * index) for index in range(count)]
        folder = _ifd(TURNED, odd, *(entry for entry in known if entry[0] != odd[0]))
        path.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + folder)
    else:
        lying.save(path, exif=b"Exif\0\0II*\0\x08\0\0\0" + _ifd(TURNED, odd))
    found = read_picture(path, 8)
    assert found.shape == (1, 3, 24, 16)
    assert found[0, :, :, :6].max() < -0.8
    assert found[0, :, :, 10:].min() > 0.8


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\x05"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_metadata_that_cannot_be_read_do_not_matter(exif: bytes, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{form.lower()}"
    _photo().save(path, exif=exif)
    assert read_picture(path, 8).shape == (1, 3, 24, 16)


@pytest.mark.parametrize("orientation", range(9))
def test_a_picture_is_turned_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = Image.effect_noise((16, 24), 90).convert("RGB")
    photo.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as file:
        wanted = np.array(ImageOps.exif_transpose(file))
    found = read_picture(tmp_path / "x.png", 8)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found.numpy(), wanted / 127.5 - 1, atol=1e-6)
