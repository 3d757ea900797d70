"""Involution that generates its weight: in one step where a backend can, else in two.

The weight has ``K * K / group_channels`` times the size of the input, so that writing it and
reading it again is most of what an involution layer moves. A backend with a ``generate`` function
makes the kernels of a few pixels at a time and applies them at once. Gradients generate the weight
again, so that no step keeps it, and where a backend can, neither the weight nor its gradient is in
memory as a whole. Compiled graphs hold it as an operator of PyTorch, and profilers
list it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.autocast import cast_together, without_autocast
from rednet.ops.backends import Problem, select_fused
from rednet.ops.checks import check_dtypes, check_generator, is_plain
from rednet.ops.geometry import Geometry, IntOrPair, pair
from rednet.ops.involution import involution2d
from rednet.ops.torch_library import allocate, define, stacked, vmap_rule
from rednet.ops.tracing import is_batched, is_compiling, is_profiled, is_recorded, listed


def generating_involution2d(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Tensor:
    """``involution2d`` with the weight that a 1 x 1 convolution makes of ``reduced``.

    Not to be transformed by torch.func, and not to be traced except, without gradients, by
    torch.compile. For the backward pass, ``input`` and ``reduced`` are kept, and the weight is
    generated again: gradients of any order exist. A weight that is generated and applied in one
    step is not rounded to 16 bits, so the two ways differ by that rounding.

    Operands must be plain, as :func:`rednet.ops.checks.is_plain` says; that is not checked.

    Args:
        input: Shape (N, C, H, W).
        reduced: Shape (N, R, Ho, Wo): what the kernel of each output pixel is generated from.
        matrix: Shape (G * Kh * Kw, R), the 1 x 1 convolution's; C is a multiple of G.
        bias: Shape (G * Kh * Kw,), the 1 x 1 convolution's, or None.
        kernel_size: Height and width of the generated kernels.
        stride: Step between output pixels, in input pixels.
        padding: Zeros added on both ends of each side, in input pixels.
        dilation: Distance between kernel elements, in input pixels.

    Returns:
        Shape (N, C, Ho, Wo), as ``involution2d`` gives.

    Raises:
        TypeError: If dtypes are not supported or differ.
        ValueError: If shapes, devices or window numbers do not fit each other.
    """
    geometry = Geometry(
        pair("kernel_size", kernel_size, minimum=1),
        pair("stride", stride, minimum=1),
        pair("padding", padding, minimum=0),
        pair("dilation", dilation, minimum=1),
    )
    groups = check_generator(input, reduced, matrix, bias, geometry)
    input, reduced, matrix, *rest = cast_together(
        input, reduced, matrix, *(() if bias is None else (bias,))
    )
    bias = rest[0] if rest else None
    for name, tensor in (("reduced", reduced), ("matrix", matrix), ("bias", bias)):
        if tensor is not None:
            check_dtypes(input, tensor, name)
    call = _Call(input, reduced, matrix, bias, groups, geometry)
    if torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in call[:4]
    ):
        # A clone, as a convolution's bias may change before the backward pass.
        return _Regenerating.apply(*call._replace(bias=None if bias is None else bias.clone()))
    return _forward(call)


class _Call(NamedTuple):
    """Checked operands, and what follows from their shapes."""

    input: Tensor
    reduced: Tensor
    matrix: Tensor
    bias: Tensor | None
    groups: int
    geometry: Geometry

    def weight(self) -> Tensor:
        """The weight, (N, G, Kh, Kw, Ho, Wo)."""
        kernels = F.conv2d(self.reduced, self.matrix[:, :, None, None], self.bias)
        return kernels.unflatten(1, (self.groups, *self.geometry.kernel_size))

    def select_fused(self, operation: str) -> Callable[..., Any] | None:
        """A backend's function for one of the ``FUSED_OPERATIONS``, if there is one."""
        # An operand without numbers is left to the operator, as no backend is asked about it.
        if 0 in (self.input.numel(), self.reduced.numel()):
            return None
        batch, channels, height, width = self.input.shape
        problem = Problem(
            operation,
            self.input.device,
            self.input.dtype,
            batch,
            channels,
            self.groups,
            (height, width),
            (self.reduced.shape[2], self.reduced.shape[3]),
            self.geometry,
        )
        return select_fused(problem)


class _Regenerating(torch.autograd.Function):
    """Its gradients are made of differentiable operators, so that they have gradients too."""

    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        call = _Call(*operands)
        ctx.save_for_backward(*call[:4])
        ctx.rest = call[4:]
        return _forward(call)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        of_input, *needed = ctx.needs_input_grad[:4]
        backward = _Backward(grad, _Call(*ctx.saved_tensors, *ctx.rest))
        with without_autocast(grad.device.type):
            grad_input = backward.grad_input() if of_input else None
            gradients = backward.grad_generator(needed) if any(needed) else (None,) * 3
        return grad_input, *gradients, None, None


class _Backward(NamedTuple):
    """The gradients of one call, each in one step where a backend can, else in two."""

    grad: Tensor
    call: _Call

    def grad_input(self) -> Tensor:
        """The gradient of the input."""
        grad, call = self
        size = call.input.shape[2], call.input.shape[3]
        if generate := self._fused("generate_grad_input"):
            grad_input = allocate(grad, call.input.shape[1], size)
            with listed("generate_grad_input"):
                generate(grad, call.reduced, call.matrix, call.bias, grad_input, call.geometry)
            return grad_input
        window = call.geometry[1:]
        return torch.ops.rednet.involution2d_grad_input(grad, call.weight(), size, *window)

    def grad_generator(self, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """The gradients of ``reduced``, ``matrix`` and bias, None where they are not needed."""
        grad, call = self
        if differentiate := self._fused("grad_generator"):
            with listed("grad_generator"):
                gradients = differentiate(
                    grad, call.input, call.reduced, call.matrix, call.geometry
                )
            return tuple(
                each if wanted else None for each, wanted in zip(gradients, needed, strict=True)
            )
        kernel_size, *window = call.geometry
        grad_weight = torch.ops.rednet.involution2d_grad_weight(
            grad, call.input, call.groups, kernel_size, *window
        )
        # Not flatten: many gradients at once have no rule for it.
        flat = grad_weight.reshape(len(call.reduced), len(call.matrix), *call.reduced.shape[2:])
        return _generator_gradients(flat, call.reduced, call.matrix, needed)

    def _fused(self, operation: str) -> Callable[..., Any] | None:
        """A backend's function for it, where nobody follows operators or differentiates again."""
        if torch.is_grad_enabled() or is_recorded() or is_batched(self.grad):
            return None
        # Hooks of saved tensors may have put others in their places.
        given = (each for each in (self.grad, *self.call[:4]) if each is not None)
        return self.call.select_fused(operation) if all(map(is_plain, given)) else None


def _generator_gradients(
    grad: Tensor, reduced: Tensor, matrix: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of ``reduced``, ``matrix`` and bias from that of the weight."""
    of_reduced, of_matrix, of_bias = torch.ops.aten.convolution_backward(
        grad,
        reduced,
        matrix[:, :, None, None],
        [len(matrix)],
        stride=[1, 1],
        padding=[0, 0],
        dilation=[1, 1],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=list(needed),
    )
    return of_reduced, of_matrix.reshape(matrix.shape) if needed[1] else None, of_bias


def _forward(call: _Call) -> Tensor:
    if is_compiling() or is_profiled():
        return torch.ops.rednet.generating_involution2d(*call[:4], *call.geometry)
    return _generate(call)


def _generate(call: _Call) -> Tensor:
    generate = call.select_fused("generate")
    if generate is None:
        return involution2d(call.input, call.weight(), *call.geometry[1:])
    size = call.reduced.shape[2], call.reduced.shape[3]
    output = allocate(call.input, call.input.shape[1], size)
    generate(*call[:4], output, call.geometry)
    return output


# ---- the operator of compiled graphs and profiles


def _operator(
    input: Tensor, reduced: Tensor, matrix: Tensor, bias: Tensor | None, *window: Any
) -> Tensor:
    geometry = Geometry(*map(tuple, window))
    groups = check_generator(input, reduced, matrix, bias, geometry)
    return _generate(_Call(input, reduced, matrix, bias, groups, geometry))


def _allocate(input: Tensor, reduced: Tensor, *_: Any) -> Tensor:
    return allocate(input, input.shape[1], (reduced.shape[2], reduced.shape[3]))


def _vmap(
    info: Any, in_dims: Any, input: Tensor, reduced: Tensor, matrix: Tensor, bias: Any, *window: Any
) -> tuple[Tensor, int]:
    operands = input, reduced, matrix, bias
    if in_dims[2] is None and in_dims[3] is None:
        return vmap_rule("generating_involution2d")(info, in_dims, *operands, *window)
    # Each has its own generator.
    input, reduced, matrix = (
        stacked(each, dim, info.batch_size)
        for each, dim in zip(operands[:3], in_dims[:3], strict=True)
    )
    kernels = torch.einsum("bor, bnrhw -> bnohw", matrix, reduced)
    if bias is not None:
        kernels = kernels + stacked(bias, in_dims[3], info.batch_size)[:, None, :, None, None]
    weight = kernels.flatten(0, 1).unflatten(1, (-1, *window[0]))
    output = torch.ops.rednet.involution2d(input.flatten(0, 1), weight, *window[1:])
    return output.unflatten(0, (info.batch_size, input.shape[1])), 0


define(
    "generating_involution2d",
    "Tensor input, Tensor reduced, Tensor matrix, Tensor? bias, SymInt[] kernel_size",
    _operator,
    _allocate,
    _vmap,
)
