"""The two scales of latents, as types: which of them a function takes is no matter of habit."""

from __future__ import annotations

from typing import NewType

from torch import Tensor

SamplerLatents = NewType("SamplerLatents", Tensor)
"""(B, C, h, w) as the diffusion model leaves them, and as TAESD takes and gives them: scaled, perhaps packed."""

VAELatents = NewType("VAELatents", Tensor)
"""(B, C, h, w) as a VAE takes and gives them: neither scaled nor packed."""
