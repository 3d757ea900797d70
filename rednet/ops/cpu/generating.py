"""The compiled kernels of involution that generates its weight, and of its gradients.

No weight and no gradient of a weight is made as a whole. See src/generate.h and
src/grad_generator.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops.backends import Problem
from rednet.ops.cpu import loader
from rednet.ops.geometry import Geometry

# The numbers in the longest vector of all builds.
_LANES = 16
# Columns of a map from which on the vectors of grad_generator, which run along its rows, are full
# enough for the two steps, weight and matrix products, to be slower.
_COLUMNS = 10
# Bytes of a cache line: rows of partial sums are made of whole lines.
_LINE = 64
# A part of a second-level cache, for the images of a block of rows.
_BLOCK_BYTES = 512 * 1024
# Blocks of rows for as many threads as there may be, where the rows suffice.
_BLOCKS = 16
# More partial sums take more memory than they gain.
_CHUNKS = 64


def generate(
    input: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    output: Tensor,
    geometry: Geometry,
) -> None:
    """Sums the weighted pixels of each window, with the weight of a few pixels at a time."""
    _call("generate", input, reduced, matrix, bias, output, geometry)


def generate_grad_input(
    grad_output: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    grad_input: Tensor,
    geometry: Geometry,
) -> None:
    """Gathers the weighted gradients of the outputs, with the weight of a few rows at a time."""
    _call("generate_grad_input", grad_input, reduced, matrix, bias, grad_output, geometry)


def grad_generator(
    grad_output: Tensor, input: Tensor, reduced: Tensor, matrix: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``reduced``, ``matrix`` and bias, with that of a few pixels' weight."""
    rows, channels = matrix.shape
    groups = rows // (geometry.kernel_size[0] * geometry.kernel_size[1])
    block = _block_rows(input, reduced, groups, geometry)
    blocks = len(input) * -(-reduced.shape[2] // block)
    # More than one only where all are together about as small as the gradient of the weight.
    chunks = min(blocks, _CHUNKS, max(1, reduced.numel() // channels**2))
    line = _LINE // input.element_size()
    grad_matrix = input.new_zeros(chunks, rows, -(-channels // line) * line)
    grad_bias = input.new_zeros(chunks, rows, line)
    channels_last = reduced.is_contiguous(memory_format=torch.channels_last)
    reduced, matrix = reduced if channels_last else reduced.contiguous(), matrix.contiguous()
    grad_reduced = torch.empty_like(reduced)
    gradient = loader.GeneratorGradient(
        loader.describe_problem(input, None, grad_output, geometry, groups),
        *(each.data_ptr() for each in (reduced, matrix, grad_reduced, grad_matrix, grad_bias)),
        *(channels, channels_last, block, chunks),
    )
    loader.call("grad_generator", input.dtype, gradient)
    return grad_reduced, grad_matrix.sum(0)[:, :channels], grad_bias.sum((0, 2))


def unsupported_reason(problem: Problem) -> str | None:
    """Why the kernels cannot compute a problem, or should not; None if they can."""
    if problem.dtype not in loader.DTYPES:
        return "it generates weights of float64 and float32 only"
    if problem.output[0] * problem.output[1] < _LANES:
        return f"it generates weights of maps of {_LANES} pixels or more"
    if problem.operation == "grad_generator" and problem.output[1] < _COLUMNS:
        return f"it is faster in two steps for maps of less than {_COLUMNS} columns"
    return None


def _call(
    name: str,
    image: Tensor,
    reduced: Tensor,
    matrix: Tensor,
    bias: Tensor | None,
    pixels: Tensor,
    geometry: Geometry,
) -> None:
    groups = len(matrix) // (geometry.kernel_size[0] * geometry.kernel_size[1])
    problem = loader.describe_problem(image, None, pixels, geometry, groups)
    # A pixel's reduced channels lie apart, pixels side by side: they are the lanes of vectors.
    reduced, matrix = reduced.contiguous(), matrix.contiguous()
    bias = None if bias is None else bias.contiguous()
    generation = loader.Generation(
        problem,
        reduced.data_ptr(),
        matrix.data_ptr(),
        None if bias is None else bias.data_ptr(),
        reduced.shape[1],
    )
    loader.call(name, image.dtype, generation)


def _block_rows(input: Tensor, reduced: Tensor, groups: int, geometry: Geometry) -> int:
    """Rows of the output whose images fit into the cache, however many threads there are."""
    batch, channels, rows, columns = reduced.shape
    width = input.shape[3] + 2 * geometry.padding[1]
    numbers = input.shape[1] // groups * (width * geometry.stride[0] + columns) + channels * columns
    row_bytes = numbers * input.element_size()
    halo = (geometry.kernel_size[0] - 1) * geometry.dilation[0] // geometry.stride[0]
    block = rows
    while block > 1 and (block + halo) * row_bytes > _BLOCK_BYTES:
        block = -(-block // 2)
    while block > halo + 1 and batch * -(-rows // block) < _BLOCKS:
        block = -(-block // 2)
    return block
