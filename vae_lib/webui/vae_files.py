"""VAE files that the host cannot load by itself."""

from __future__ import annotations


def install() -> None:
    """Patch the host's loading of VAE files."""
