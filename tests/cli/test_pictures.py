"""Reading pictures by the range that they really have."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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
    torch.testing.assert_close(
        found, torch.from_numpy((low + RAMP * (1 - low)) * 2 - 1).float(), atol=1e-5, rtol=0
    )


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
