"""Whether the CUDA kernels can serve a tensor and, if not, why."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from rednet.ops.cuda.compiler import compile_with_cupy
from rednet.ops.cuda.problem import Specialization

# The quickest to compile.
_TRIAL = Specialization("forward", torch.float32, channels_last=False, kernel_width=0, stride=0)


def unsupported_reason(device: torch.device) -> str | None:
    """None if the kernels can run on this device, else the reason why they cannot.

    Where there is a GPU but no way to compile for it, a warning says so once.
    """
    if device.type != "cuda":
        return "it supports CUDA tensors only"
    return _reason_on(device.index)


@cache
def _reason_on(index: int | None) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    reason = _reason_without_cupy(
        int(torch.version.cuda.split(".")[0])
    ) or _reason_without_compilation(index)
    if reason is not None:
        text = f"involution does not use its CUDA kernels: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return reason


def _reason_without_cupy(major: int) -> str | None:
    remedy = f"pip install 'rednet[cuda{major}]' installs cupy-cuda{major}x"
    try:
        import cupy

        found = cupy.cuda.runtime.runtimeGetVersion() // 1000
    except Exception as error:  # absent, at odds with NumPy or with the driver: each has its own
        return f"CuPy cannot be used ({type(error).__name__}: {error}); {remedy}"
    if found != major:
        return f"CuPy is built for CUDA {found}, PyTorch for CUDA {major}; {remedy}"
    return None


def _reason_without_compilation(index: int | None) -> str | None:
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    try:
        compile_with_cupy(_TRIAL, device)
    except Exception as error:  # CuPy, NVRTC and the driver each raise their own
        return f"CuPy cannot compile for {device}: {type(error).__name__}: {error}"
    return None
