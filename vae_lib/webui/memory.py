"""How much memory a decode may take now."""

from __future__ import annotations

import torch

from vae_lib.decode import free_bytes

MB = 10**6


def available(device: torch.device, reserve_mb: int) -> int:
    """Bytes that may be allocated now, less the user's reserve.

    With ``--lowvram`` and ``--medvram`` the host has moved the UNet out by the time a decode asks, so what it freed
    is counted: free for the driver, or unused in PyTorch's cache.
    """
    return max(0, free_bytes(device) - reserve_mb * MB)
