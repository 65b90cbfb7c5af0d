"""Numbers for people."""

from __future__ import annotations


def size_text(size: float, up: bool = False) -> str:
    """Bytes in decimal units: "1.6 GB". ``up`` rounds up, for a size that must suffice."""
    for unit, divisor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= divisor:
            digits = 1 if size < 100 * divisor else 0
            step = divisor // 10**digits
            size = -(-size // step) * step if up else size
            return f"{size / divisor:.{digits}f} {unit}"
    return "1 byte" if int(size) == 1 else f"{int(size)} bytes"
