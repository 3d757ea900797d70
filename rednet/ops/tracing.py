"""Which tracer or transformation is active, whichever version of PyTorch it is.

This is the only file that names private parts of PyTorch, because the public API does not answer
these questions: operators registered by ``torch.library`` have no rule for ``torch.func``'s
derivatives or forward mode, and an ``autograd.Function`` with ``vmap`` and ``jvp`` is opaque to
``torch.compile`` and ``torch.export``. Each name is looked up at import. If PyTorch
has renamed one, the answer keeps results right, and compiled kernels may go unused.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _private(path: str) -> Any:
    """What a dotted name in torch refers to, or None if this version has no such name."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


# torch.compiler.is_compiling came with torch 2.2, torch.compiler.is_exporting with torch 2.7.
_is_compiling = getattr(torch.compiler, "is_compiling", None) or _private("_utils.is_compiling")
_is_exporting = getattr(torch.compiler, "is_exporting", None)
_are_transforms_active = _private("_C._are_functorch_transforms_active")
# Not in torch 2.1.
_transforms = _private("_C._functorch.get_interpreter_stack")
_DERIVATIVES = (
    _private("_C._functorch.TransformType.Grad"),
    _private("_C._functorch.TransformType.Jvp"),
)
_dispatch_modes = _private("_C._len_torch_dispatch_stack")
_function_modes = _private("_C._len_torch_function_stack")
_dispatch_keys = _private("_C._dispatch_keys")
_profiler_enabled = _private("autograd._profiler_enabled")
_GLOBAL_HOOKS = tuple(
    _private(f"nn.modules.module._global_{kind}_hooks")
    for kind in ("forward", "forward_pre", "backward", "backward_pre")
)
# Not in torch 2.1.
_top_hooks = _private("_C._autograd._top_saved_tensors_default_hooks")
_may_have_hooks = _private("_C._autograd._saved_tensors_hooks_is_enabled")
# Not in torch 2.1.
_set_strategy = _private("_C._dynamo.eval_frame.set_code_exec_strategy")
_Strategy = _private("_C._dynamo.eval_frame._FrameExecStrategy")
_Action = _private("_C._dynamo.eval_frame._FrameAction")
_AutoDispatchBelowAutograd = _private("_C._AutoDispatchBelowAutograd")

_keeps_operator: ContextVar[bool] = ContextVar("keeps_operator", default=False)


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is recording."""
    return _is_compiling()


def is_exporting() -> bool:
    """Whether a graph is recorded that other batch and image sizes may run through.

    True for torch.jit.trace, torch.onnx.export and torch.export; before torch 2.7 torch.export
    cannot be told from torch.compile.
    """
    if torch.jit.is_tracing():
        return True
    # To torch.compile, is_exporting() is always true in some releases (2.10); the flag is not.
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    if flag is not None:
        return flag
    return _is_exporting is not None and _is_exporting()


def is_only_compiled() -> bool:
    """Whether torch.compile records a graph that only this process will run.

    Not where torch.export may be recording: before torch 2.7 never.
    """
    return is_compiling() and _is_exporting is not None and not is_exporting()


def is_forward_mode() -> bool | None:
    """Whether forward-mode differentiation is active; None if this PyTorch does not tell."""
    level = getattr(forward_ad, "_current_level", None)
    return None if level is None else level >= 0


def is_transformed() -> bool:
    """Whether torch.func (grad, vmap ...) or forward-mode differentiation may be active."""
    if is_forward_mode() is not False or _are_transforms_active is None:
        return True
    return _are_transforms_active()


def is_dispatched() -> bool:
    """Whether Python may see every operator that runs: to count FLOPs, for fake tensors ...

    Or every function of ``torch`` that is called, as ``make_fx(pre_dispatch=True)`` does.
    """
    if _dispatch_modes is None or _function_modes is None:
        return True
    return _dispatch_modes() > 0 or _function_modes() > 0


def is_profiled() -> bool:
    """Whether a profiler lists the operators that run."""
    return _profiler_enabled is None or _profiler_enabled()


def listed(operation: str) -> AbstractContextManager[Any]:
    """Has a profiler list what runs inside, which is no operator of PyTorch."""
    if not is_profiled():
        return nullcontext()
    return torch.profiler.record_function(f"rednet::{operation}")


def is_recorded() -> bool:
    """Whether something may follow or transform the operators that run: a tracer, torch.func ..."""
    return is_compiling() or is_exporting() or is_dispatched() or is_transformed()


def has_global_hooks() -> bool:
    """Whether hooks for all modules may be registered, by ``register_module_forward_hook`` ..."""
    return None in _GLOBAL_HOOKS or any(_GLOBAL_HOOKS)


def may_hook_saved_tensors() -> bool:
    """Whether hooks for saved tensors are allowed, and those that are there already are known."""
    return _top_hooks is not None and _may_have_hooks is not None and _may_have_hooks()


def hooks_of_saved_tensors() -> tuple[Callable, Callable] | None:
    """The hooks of the innermost ``saved_tensors_hooks``, as checkpointing has them: pack, unpack.

    For use where :func:`may_hook_saved_tensors`. Only the innermost are called by PyTorch, so hooks
    of our own have to call these.
    """
    return _top_hooks(False)


def is_checkpointed() -> bool:
    """Whether torch.utils.checkpoint runs now what the backward pass will run again.

    Both runs have to save the same tensors, whatever follows the operators of one of them. Before
    torch 2.2 never.
    """
    hooks = None if _top_hooks is None else hooks_of_saved_tensors()
    return getattr(hooks and hooks[0], "__module__", None) == "torch.utils.checkpoint"


def is_batched(tensor: Tensor) -> bool:
    """Whether it may be many gradients at once, from ``autograd.grad(is_grads_batched=True)``."""
    return not _shows_batches() or _is_batched(tensor)


def _is_batched(tensor: Tensor) -> bool:
    # The key itself has no name in Python.
    return _dispatch_keys is not None and "Batched" in repr(_dispatch_keys(tensor))


@cache
def _shows_batches() -> bool:
    """Whether :func:`_is_batched` knows a batch when it sees one: asked of a real one, once."""
    answers = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, input: Tensor) -> Tensor:
            return input.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            answers.append(_is_batched(grad))
            return grad

    with torch.enable_grad():
        input = torch.zeros(1, requires_grad=True)
        output = Probe.apply(input)
        torch.autograd.grad(output, input, torch.zeros(2, 1), is_grads_batched=True)
    return all(answers)


def needs_decomposition() -> bool:
    """Whether the current context cannot use a custom operator.

    True for torch.onnx.export, except in :func:`keeping_operator`; for torch.func's derivatives
    (grad, vjp, jvp and what is built on them), which refuse the autograd formulas of custom
    operators; and for forward-mode differentiation, which would silently treat their output as a
    constant.
    """
    if is_exporting():
        return torch.onnx.is_in_onnx_export() and not _keeps_operator.get()
    return not is_compiling() and (is_forward_mode() is not False or _is_differentiated())


@contextmanager
def keeping_operator() -> Iterator[None]:
    """Inside, torch.onnx.export records our own operator: the exporter has to know it."""
    token = _keeps_operator.set(True)
    try:
        yield
    finally:
        _keeps_operator.reset(token)


def _is_differentiated() -> bool:
    if _are_transforms_active is not None and not _are_transforms_active():
        return False
    # If they cannot be told apart, every transformation counts.
    if _transforms is None or None in _DERIVATIVES:
        return True
    return any(each.key() in _DERIVATIVES for each in _transforms())


def below_autograd() -> AbstractContextManager[Any]:
    """Calls inside skip autograd: for an operator's own autograd kernel, before torch 2.4."""
    return _AutoDispatchBelowAutograd()


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps torch.compile from looking into the Python code of a function and of what it calls.

    ``torch.compiler.disable`` does that too, but imports the compiler, which takes half a second.
    """
    if _set_strategy is None or _Action is None or _Strategy is None:
        return torch.compiler.disable(function)
    _set_strategy(inspect.unwrap(function).__code__, _Strategy(_Action.SKIP, _Action.SKIP))
    return function


def allow_repeated_backward() -> None:
    """Lets the backward pass of compiled code run more than once, for benchmarks."""
    # Donated buffers came with torch 2.6; the module is not loaded by torch itself.
    with suppress(ImportError):
        config: Any = importlib.import_module("torch._functorch.config")
        if hasattr(config, "donated_buffer"):
            config.donated_buffer = False
