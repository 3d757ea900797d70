"""``torch.ops.rednet``: involution and its two gradients as operators of PyTorch.

The three operators are bilinear and closed under differentiation: the derivative of each is made of
the other two. So autograd can differentiate them any number of times, and nothing but their two
inputs is ever saved.

    out         = involution2d(input, weight)
    grad_input  = involution2d_grad_input(grad_out, weight)
    grad_weight = involution2d_grad_weight(grad_out, input)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rednet.ops.backends import Problem, select_backend
from rednet.ops.checks import check_dtypes, check_output_size, check_tensors
from rednet.ops.geometry import Geometry, Pair
from rednet.ops.tracing import below_autograd, is_forward_mode, opaque

_NAMESPACE = "rednet"
_WINDOW = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_library = torch.library.Library(_NAMESPACE, "DEF")


# ---- what the operators return: every output follows the memory format of the first argument


def _channels_last(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last) and not image.is_contiguous()


def allocate(like: Tensor, channels: int, size: Pair) -> Tensor:
    """An image of another size in the memory format of ``like``, not initialized."""
    if is_forward_mode():
        # PyTorch would take the output for a constant, in a recorded graph too.
        raise NotImplementedError(
            "torch.ops.rednet has no forward-mode derivative; rednet.ops.involution2d has one, "
            "outside of torch.compile"
        )
    layout = torch.channels_last if _channels_last(like) else torch.contiguous_format
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _allocate_output(input: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return allocate(input, input.shape[1], (weight.shape[4], weight.shape[5]))


def _allocate_grad_input(grad: Tensor, weight: Tensor, size: Pair, *_: Any) -> Tensor:
    return allocate(grad, grad.shape[1], (size[0], size[1]))


def _allocate_grad_weight(
    grad: Tensor, input: Tensor, groups: int, kernel_size: Pair, *_: Any
) -> Tensor:
    taps = kernel_size[0] * kernel_size[1]
    flat = allocate(grad, groups * taps, (grad.shape[2], grad.shape[3]))
    return flat.unflatten(1, (groups, kernel_size[0], kernel_size[1]))


# ---- what they compute


def _involution2d(input: Tensor, weight: Tensor, *window: Any) -> Tensor:
    geometry = _checked_geometry(input, weight, window)
    output = _allocate_output(input, weight)
    return _run("forward", input, weight, output, geometry)


def involution2d_undispatched(input: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The forward pass of checked operands, where nobody would see the operator: it costs less."""
    return _run("forward", input, weight, _allocate_output(input, weight), geometry)


def _involution2d_grad_input(grad: Tensor, weight: Tensor, size: Pair, *window: Any) -> Tensor:
    grad_input = _allocate_grad_input(grad, weight, size)
    geometry = _checked_geometry(grad_input, weight, window)
    _check_gradient(grad, grad_input, weight)
    return _run("grad_input", grad, weight, grad_input, geometry)


def _involution2d_grad_weight(
    grad: Tensor, input: Tensor, groups: int, kernel_size: Pair, *window: Any
) -> Tensor:
    grad_weight = _allocate_grad_weight(grad, input, groups, kernel_size)
    geometry = _checked_geometry(input, grad_weight, window)
    _check_gradient(grad, input, grad_weight)
    return _run("grad_weight", grad, input, grad_weight, geometry)


def _checked_geometry(image: Tensor, weight: Tensor, window: Any) -> Geometry:
    """The geometry that a window and a weight make, where they fit each other and the image.

    A graph that torch.jit.trace has recorded calls the operators without the checks of rednet.ops.
    """
    check_tensors(image, weight)
    geometry = Geometry((weight.shape[2], weight.shape[3]), *map(tuple, window))
    if min(geometry.stride + geometry.dilation) < 1 or min(geometry.padding) < 0:
        raise ValueError(
            f"stride and dilation must be at least 1 and padding at least 0, got {geometry}"
        )
    check_output_size(image, weight, geometry)
    check_dtypes(image, weight)
    return geometry


def _check_gradient(grad: Tensor, image: Tensor, weight: Tensor) -> None:
    expected = (*image.shape[:2], *weight.shape[4:])
    if grad.shape != expected:
        raise ValueError(f"grad must have shape {expected}, got {tuple(grad.shape)}")


def _run(kernel: str, first: Tensor, second: Tensor, output: Tensor, geometry: Geometry) -> Tensor:
    """Runs the selected backend. Empty problems are zero-filled without one."""
    if 0 in (first.numel(), second.numel(), output.numel()):
        return output.zero_()
    problem = Problem.read(kernel, first, second, output, geometry)
    getattr(select_backend(problem), kernel)(first, second, output, geometry)
    return output


# ---- how they differentiate


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.window = inputs[-3:]
    ctx.constants = len(inputs) - 2


def _gradients(
    ctx: Any, first: Callable[[], Tensor], second: Callable[[], Tensor]
) -> tuple[Tensor | None, ...]:
    """The gradients of the two tensors, where they are needed, and None for each constant."""
    return (
        first() if ctx.needs_input_grad[0] else None,
        second() if ctx.needs_input_grad[1] else None,
        *(None,) * ctx.constants,
    )


def _image_gradient(grad: Tensor, weight: Tensor, image: Tensor, window: Any) -> Tensor:
    return torch.ops.rednet.involution2d_grad_input(grad, weight, image.shape[2:], *window)


def _weight_gradient(grad: Tensor, image: Tensor, weight: Tensor, window: Any) -> Tensor:
    return torch.ops.rednet.involution2d_grad_weight(
        grad, image, weight.shape[1], weight.shape[2:4], *window
    )


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight = ctx.saved_tensors
    return _gradients(
        ctx,
        lambda: _image_gradient(grad, weight, input, ctx.window),
        lambda: _weight_gradient(grad, input, weight, ctx.window),
    )


def _backward_of_grad_input(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    return _gradients(
        ctx,
        lambda: torch.ops.rednet.involution2d(cotangent, weight, *ctx.window),
        lambda: _weight_gradient(grad, cotangent, weight, ctx.window),
    )


def _backward_of_grad_weight(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    grad, input = ctx.saved_tensors
    return _gradients(
        ctx,
        lambda: torch.ops.rednet.involution2d(input, cotangent, *ctx.window),
        lambda: _image_gradient(grad, cotangent, input, ctx.window),
    )


# ---- torch.func.vmap: the mapped dimension joins the batch


def vmap_rule(name: str) -> Callable[..., tuple[Tensor, int]]:
    """The rule of an operator of which only the first two tensors are mapped."""
    operator = getattr(torch.ops.rednet, name)

    def rule(
        info: Any, in_dims: Any, first: Tensor, second: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        folded = (
            _fold(tensor, dim, info.batch_size)
            for tensor, dim in zip((first, second), in_dims[:2], strict=True)
        )
        output = operator(*folded, *rest)
        return output.unflatten(0, (info.batch_size, output.shape[0] // info.batch_size)), 0

    return rule


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return stacked(tensor, dim, size).flatten(0, 1)


def stacked(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the mapped dimension first."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


# ---- registration


def define(
    name: str,
    signature: str,
    kernel: Callable[..., Tensor],
    allocate: Callable[..., Tensor],
    rule: Callable[..., tuple[Tensor, int]] | None = None,
) -> None:
    """Defines an operator of ``torch.ops.rednet``, without a derivative.

    Args:
        name: Its name.
        signature: Its arguments before the window's.
        kernel: What computes it.
        allocate: What makes its output for tensors without numbers.
        rule: Its rule for torch.func.vmap, if not :func:`vmap_rule`'s.
    """
    _library.define(f"{name}({signature}, {_WINDOW}) -> Tensor")
    # Where a compiled function has fallen back to eager, the compiler looks into every Python call.
    _library.impl(name, opaque(kernel), "CompositeExplicitAutograd")
    _library.impl(name, allocate, "Meta")
    if hasattr(torch.library, "register_vmap"):  # torch >= 2.5; before, vmap loops by itself
        qualified = f"{_NAMESPACE}::{name}"
        torch.library.register_vmap(qualified, rule or vmap_rule(name), lib=_library)


def _register(
    name: str,
    signature: str,
    kernel: Callable[..., Tensor],
    allocate: Callable[..., Tensor],
    backward: Callable[..., Any],
) -> None:
    qualified = f"{_NAMESPACE}::{name}"
    define(name, signature, kernel, allocate)
    if hasattr(torch.library, "register_autograd"):  # torch >= 2.4
        torch.library.register_autograd(qualified, backward, setup_context=_save, lib=_library)
    else:
        _library.impl(name, _autograd_function(name, backward), "Autograd")


def _autograd_function(name: str, backward: Callable[..., Any]) -> Callable[..., Tensor]:
    def forward(*inputs: Any) -> Tensor:
        with below_autograd():
            return getattr(torch.ops.rednet, name)(*inputs)

    members: dict[str, Any] = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(_save),
        "backward": staticmethod(backward),
    }
    function: Any = type(name, (torch.autograd.Function,), members)
    return function.apply


_register("involution2d", "Tensor input, Tensor weight", _involution2d, _allocate_output, _backward)
_register(
    "involution2d_grad_input",
    "Tensor grad, Tensor weight, SymInt[] size",
    _involution2d_grad_input,
    _allocate_grad_input,
    _backward_of_grad_input,
)
_register(
    "involution2d_grad_weight",
    "Tensor grad, Tensor input, SymInt groups, SymInt[] kernel_size",
    _involution2d_grad_weight,
    _allocate_grad_weight,
    _backward_of_grad_weight,
)
