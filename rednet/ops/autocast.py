"""What autocast asks of the operator, whichever version of PyTorch runs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# torch.get_autocast_dtype came with torch 2.4; before, each device had functions of its own.
_DEVICE_AGNOSTIC = hasattr(torch, "get_autocast_dtype")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast runs convolutions in on this device, None where it is off."""
    if _DEVICE_AGNOSTIC:
        if device_type == "meta":  # knows no autocast; asking would raise
            return None
        enabled = torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if enabled else None
    if device_type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    if device_type == "cuda":
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
    return None


def cast_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast hands them to a convolution; all as they are if one is float64."""
    dtype = autocast_dtype(tensors[0].device.type)
    if dtype is None or any(tensor.dtype == torch.float64 for tensor in tensors):
        return tensors
    return tuple(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Inside, operators run in the dtypes of their operands, as those of a backward pass do."""
    if autocast_dtype(device_type) is None:
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
