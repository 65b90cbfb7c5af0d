"""The floating-point types that a VAE may compute in."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, fp16 or bf16."""
    return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """In which sums are gathered; without asking PyTorch, for which that is an operation like any other."""
    return dtype if dtype == torch.float64 else torch.float32
