"""What the tensors of an involution must be to each other and to its window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rednet.ops.dtypes import SUPPORTED_DTYPES
from rednet.ops.geometry import Geometry
from rednet.ops.tracing import is_compiling

Shape = Sequence[int]


def is_plain(tensor: Tensor) -> bool:
    """Whether the numbers lie in its memory as they read, so that compiled code may read them.

    They do not in subclasses, which may stand for other numbers (quantized, distributed), in other
    layouts (sparse, MKL-DNN) and in lazily negated views. The operators in a compiled graph get
    such a view negated.
    """
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        # In this order: the second question would end the graph of torch.compile.
        and (is_compiling() or not tensor.is_neg())
    )


def check_tensors(input: Tensor, weight: Tensor) -> None:
    """Checks all of two tensors but dtypes and the sizes that a window relates.

    Raises:
        TypeError: If one is not a tensor.
        ValueError: If shapes or devices do not fit each other.
    """
    for name, tensor, dims in (
        ("input", input, "(N, C, H, W)"),
        ("weight", weight, "(N, G, Kh, Kw, Ho, Wo)"),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dim() != dims.count(",") + 1:
            raise ValueError(f"{name} must have shape {dims}, got {tuple(tensor.shape)}")
    if input.device != weight.device:
        raise ValueError(
            f"input and weight must be on one device, got {input.device} and {weight.device}"
        )
    _check_shapes(input.shape, weight.shape)


def _check_shapes(input: Shape, weight: Shape) -> None:
    batch, channels, *_ = input
    kernels, groups, rows, columns, *_ = weight
    if batch != kernels:
        raise ValueError(
            f"input and weight must have the same batch size, got {batch} and {kernels}"
        )
    if groups == 0 or channels % groups:
        raise ValueError(
            "the channels of input must be a multiple of the groups of weight, "
            f"got {channels} channels and {groups} groups"
        )
    if rows == 0 or columns == 0:
        raise ValueError(f"weight must hold a kernel of at least 1 x 1, got {tuple(weight)}")


def check_output_size(input: Tensor, weight: Tensor, geometry: Geometry) -> None:
    """Checks that the weight has a kernel for each output pixel.

    Raises:
        ValueError: If a kernel is missing, or there is no output pixel.
    """
    _check_output_size(input.shape[2:], weight.shape[4:], geometry)


def _check_output_size(size: Shape, kernels: Shape, geometry: Geometry) -> None:
    height, width = geometry.output_size(*size)
    if height < 1 or width < 1:
        raise ValueError(
            f"input of {size[0]} x {size[1]} is smaller than the window: "
            f"the output would be {height} x {width} for {geometry}"
        )
    if kernels[0] != height or kernels[1] != width:
        raise ValueError(
            f"weight must hold a kernel for each of the {height} x {width} output pixels of an "
            f"input of {size[0]} x {size[1]}, got {kernels[0]} x {kernels[1]}"
        )


def check_generator(
    input: Tensor, reduced: Tensor, matrix: Tensor, bias: Tensor | None, geometry: Geometry
) -> int:
    """Checks all but dtypes of what generates a weight and of the input that it is for.

    Returns:
        The groups of the weight.

    Raises:
        ValueError: If shapes or devices do not fit each other and the window.
    """
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    if reduced.dim() != 4 or matrix.dim() != 2 or matrix.shape[1] != reduced.shape[1]:
        raise ValueError(
            "reduced must have shape (N, R, Ho, Wo) and matrix (G * Kh * Kw, R), "
            f"got {tuple(reduced.shape)} and {tuple(matrix.shape)}"
        )
    groups = len(matrix) // taps
    if groups * taps != len(matrix) or (bias is not None and bias.shape != matrix.shape[:1]):
        raise ValueError(
            f"matrix and bias must have a multiple of {taps} rows, got {tuple(matrix.shape)} and "
            f"{None if bias is None else tuple(bias.shape)}"
        )
    if input.dim() != 4:
        raise ValueError(f"input must have shape (N, C, H, W), got {tuple(input.shape)}")
    for tensor in (input, matrix, bias):
        if tensor is not None and tensor.device != reduced.device:
            raise ValueError(f"all must be on {reduced.device}, got {tensor.device}")
    batch, _, *size = reduced.shape
    _check_shapes(input.shape, (batch, groups, *geometry.kernel_size, *size))
    _check_output_size(input.shape[2:], size, geometry)
    return groups


def check_dtypes(input: Tensor, weight: Tensor, name: str = "weight") -> None:
    """Checks that both tensors have the same, supported dtype.

    Args:
        input: One of them.
        weight: The other.
        name: What messages call the other.

    Raises:
        TypeError: If the dtypes differ or are not supported.
    """
    for each, tensor in (("input", input), (name, weight)):
        if tensor.dtype not in SUPPORTED_DTYPES:
            raise TypeError(f"{each} must be one of {SUPPORTED_DTYPES}, got {tensor.dtype}")
    if input.dtype != weight.dtype:
        raise TypeError(
            f"input and {name} must have the same dtype, got {input.dtype} and {weight.dtype}"
        )
