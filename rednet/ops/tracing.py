"""Which tracer, if any, is recording the code that runs, whichever version of PyTorch it is."""

from __future__ import annotations

import torch
from torch import Tensor, _utils
from torch.autograd import forward_ad

# torch.compiler.is_compiling came with torch 2.2, torch.compiler.is_exporting with torch 2.7.
_is_compiling = getattr(torch.compiler, "is_compiling", None) or _utils.is_compiling
_is_exporting = getattr(torch.compiler, "is_exporting", None)
# Not in torch 2.1.
_transforms = getattr(torch._C._functorch, "get_interpreter_stack", None)
_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def is_compiling() -> bool:
    """Whether torch.compile or torch.export records."""
    return _is_compiling()


def is_exporting() -> bool:
    """Whether a graph is recorded that other batch and image sizes may run through.

    True for torch.jit.trace, torch.onnx.export and torch.export; before torch 2.7 torch.export
    cannot be told from torch.compile.
    """
    return torch.jit.is_tracing() or (_is_exporting is not None and _is_exporting())


def is_transformed() -> bool:
    """Whether torch.func (grad, vmap ...) or forward-mode differentiation transforms what runs."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def is_dispatched() -> bool:
    """Whether Python looks at every operator that runs: to count FLOPs, for fake tensors ..."""
    return torch._C._len_torch_dispatch_stack() > 0


def is_batched(tensor: Tensor) -> bool:
    """Whether it is many gradients at once: ``torch.autograd.grad(..., is_grads_batched=True)``."""
    # The key itself has no name in Python.
    return "Batched" in repr(torch._C._dispatch_keys(tensor))


def takes_plain_operators_alone() -> bool:
    """Whether what runs now can make nothing of an operator of our own, or only something wrong.

    True for torch.onnx.export; for the derivatives of torch.func (grad, vjp, jvp and what is made
    of them), which refuse the autograd of operators like ours; and for forward-mode
    differentiation, which would silently take their output for a constant.
    """
    if is_exporting():
        return torch.onnx.is_in_onnx_export()
    return not is_compiling() and (forward_ad._current_level >= 0 or _is_differentiated())


def _is_differentiated() -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    # Where it cannot be told, every transform counts.
    return _transforms is None or any(each.key() in _DERIVATIVES for each in _transforms())
