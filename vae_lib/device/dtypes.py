"""The floating-point types that a VAE may compute in."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
