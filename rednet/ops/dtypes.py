"""The floating types that the operator serves, and how it accumulates in them."""

from __future__ import annotations

import torch

SUPPORTED_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 accumulates in float64, everything else in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
