"""Which tracer, if any, is recording the code that runs, whichever version of PyTorch it is."""

from __future__ import annotations

import torch
from torch import _utils

# torch.compiler.is_compiling came with torch 2.2, torch.compiler.is_exporting with torch 2.7.
_is_compiling = getattr(torch.compiler, "is_compiling", None) or _utils.is_compiling
_is_exporting = getattr(torch.compiler, "is_exporting", None)


def is_compiling() -> bool:
    """Whether torch.compile or torch.export records."""
    return _is_compiling()


def is_exporting() -> bool:
    """Whether a graph is recorded that other batch and image sizes may run through.

    True for torch.jit.trace, torch.onnx.export and torch.export; before torch 2.7 torch.export
    cannot be told from torch.compile.
    """
    return torch.jit.is_tracing() or (_is_exporting is not None and _is_exporting())


def is_exporting_to_onnx() -> bool:
    """Whether torch.onnx.export records."""
    return is_exporting() and torch.onnx.is_in_onnx_export()
