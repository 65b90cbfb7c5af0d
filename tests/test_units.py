"""Numbers as people read them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vae_lib.units import size_text

UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def in_bytes(text: str) -> int:
    number, unit = text.split()
    return round(float(number) * UNITS[unit])


@given(size=st.integers(0, 10**13))
def test_size_text(size: int) -> None:
    assert in_bytes(size_text(size, up=True)) >= size
    assert in_bytes(size_text(size, up=True)) <= 1.1 * size + 1
    assert abs(in_bytes(size_text(size)) - size) <= 0.05 * size


def test_units() -> None:
    sizes = (12, 1500, 2_340_000, 345_600_000, 1_600_000_000)
    assert [size_text(size) for size in sizes] == ["12 bytes", "1.5 kB", "2.3 MB", "346 MB", "1.6 GB"]
