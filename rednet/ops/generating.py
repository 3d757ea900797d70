"""Involution that generates its weight: in one step where a backend can, else in two.

The weight has ``K * K / group_channels`` times the size of the input, so that writing it and
reading it again is most of what an involution layer moves. A backend with a ``generate`` function
makes the kernels of a few pixels at a time and applies them at once. Gradients generate the weight
again, so that no step keeps it. Compiled graphs hold it as an operator of PyTorch, and profilers
list it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.autocast import cast_together, without_autocast
from rednet.ops.backends import Problem, select_generating
from rednet.ops.checks import check_dtypes, check_generator
from rednet.ops.geometry import Geometry, IntOrPair, pair
from rednet.ops.involution import involution2d
from rednet.ops.torch_library import allocate, define, stacked, vmap_rule
from rednet.ops.tracing import is_compiling, is_profiled


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
    operands = input, reduced, matrix, bias
    if torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in operands
    ):
        # A clone, as a convolution's bias may change before the backward pass.
        kept = None if bias is None else bias.clone()
        return _Regenerating.apply(input, reduced, matrix, kept, groups, geometry)
    return _forward(*operands, groups, geometry)


class _Regenerating(torch.autograd.Function):
    """Its gradients are made of differentiable operators, so that they have gradients too."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        reduced: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        groups: int,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(input, reduced, matrix, bias)
        ctx.groups, ctx.geometry = groups, geometry
        return _forward(input, reduced, matrix, bias, groups, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        input, reduced, matrix, bias = ctx.saved_tensors
        kernel_size, *window = ctx.geometry
        grad_input = None
        with without_autocast(grad.device.type):
            if ctx.needs_input_grad[0]:
                weight = _generated(reduced, matrix, bias, ctx.groups, ctx.geometry)
                grad_input = torch.ops.rednet.involution2d_grad_input(
                    grad, weight, input.shape[2:], *window
                )
            if not any(ctx.needs_input_grad[1:4]):
                return grad_input, None, None, None, None, None
            grad_weight = torch.ops.rednet.involution2d_grad_weight(
                grad, input, ctx.groups, kernel_size, *window
            )
            # Not flatten: many gradients at once have no rule for it.
            flat = grad_weight.reshape(len(reduced), len(matrix), *reduced.shape[2:])
            of_reduced, of_matrix, of_bias = _generator_gradients(
                flat, reduced, matrix, ctx.needs_input_grad[1:4]
            )
        return grad_input, of_reduced, of_matrix, of_bias, None, None


def _generator_gradients(
    grad: Tensor, reduced: Tensor, matrix: Tensor, needed: tuple[bool, ...]
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


def _forward(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Geometry,
) -> Tensor:
    if is_compiling() or is_profiled():
        return torch.ops.rednet.generating_involution2d(input, reduced, matrix, bias, *geometry)
    return _generate(input, reduced, matrix, bias, groups, geometry)


def _generate(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    groups: int,
    geometry: Geometry,
) -> Tensor:
    generate = select_generating(_problem(input, reduced, groups, geometry))
    # An operand without numbers is left to the operator, as no backend is asked about it.
    if generate is None or 0 in (input.numel(), reduced.numel()):
        weight = _generated(reduced, matrix, bias, groups, geometry)
        return involution2d(input, weight, *geometry[1:])
    output = allocate(input, input.shape[1], (reduced.shape[2], reduced.shape[3]))
    generate(input, reduced, matrix, bias, output, geometry)
    return output


def _problem(input: Tensor, reduced: Tensor, groups: int, geometry: Geometry) -> Problem:
    return Problem(
        "generate",
        input.device,
        input.dtype,
        input.shape[0],
        input.shape[1],
        groups,
        (input.shape[2], input.shape[3]),
        (reduced.shape[2], reduced.shape[3]),
        geometry,
    )


def _generated(
    reduced: Tensor, matrix: Tensor, bias: Tensor | None, groups: int, geometry: Geometry
) -> Tensor:
    """The weight, (N, G, Kh, Kw, Ho, Wo)."""
    kernels = F.conv2d(reduced, matrix[:, :, None, None], bias)
    return kernels.unflatten(1, (groups, *geometry.kernel_size))


# ---- the operator of compiled graphs and profiles


def _operator(
    input: Tensor, reduced: Tensor, matrix: Tensor, bias: Tensor | None, *window: Any
) -> Tensor:
    geometry = Geometry(*map(tuple, window))
    groups = check_generator(input, reduced, matrix, bias, geometry)
    return _generate(input, reduced, matrix, bias, groups, geometry)


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
