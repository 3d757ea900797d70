"""Whether the CUDA kernels can serve a tensor and, if not, why."""

from __future__ import annotations

import warnings
from functools import cache

import torch

from rednet.ops.cuda.compiler import compile_with_cupy
from rednet.ops.cuda.problem import Specialisation

# The quickest to compile.
_TRIAL = Specialisation("forward", torch.float32, channels_last=False, kernel_width=0, stride=0)


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None where the kernels serve tensors of this device and dtype, else the reason why not.

    Where there is a GPU but no way to compile for it, a warning says so once.
    """
    if device.type != "cuda":
        return "it serves CUDA tensors only"
    return _why_not_on(device.index)


@cache
def _why_not_on(index: int | None) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    reason = _why_no_cupy(int(torch.version.cuda.split(".")[0])) or _why_no_compilation(index)
    if reason is not None:
        text = f"involution falls back to eager PyTorch on CUDA: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return reason


def _why_no_cupy(major: int) -> str | None:
    remedy = f"pip install 'rednet[cuda{major}]' installs cupy-cuda{major}x"
    try:
        import cupy

        found = cupy.cuda.runtime.runtimeGetVersion() // 1000
    except Exception as error:  # absent, at odds with NumPy or with the driver: each has its own
        return f"CuPy cannot be used ({type(error).__name__}: {error}); {remedy}"
    if found != major:
        return f"CuPy is built for CUDA {found}, PyTorch for CUDA {major}; {remedy}"
    return None


def _why_no_compilation(index: int | None) -> str | None:
    device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
    try:
        compile_with_cupy(_TRIAL, device)
    except Exception as error:  # CuPy, NVRTC and the driver each raise their own
        return f"CuPy cannot compile for {device}: {type(error).__name__}: {error}"
    return None
