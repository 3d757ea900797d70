"""Involution that generates its weight, as one Triton kernel.

One row of the kernels of a tile of pixels at a time is a matrix product of the tensor cores. It
stays in registers, dealt out tap by tap, and each tap is multiplied with the pixels that it sees.
The arguments are those of ``kernels.py``; ``reduced``, ``matrix`` and ``bias`` are those of
``rednet.ops.generating.generating_involution2d``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rednet.ops.triton.kernels import addresses, pixel_offset, tile, widened


@triton.jit
def _columns(values: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> tl.tuple:
    """The columns of a matrix: Triton cannot take one, but it can split in halves."""
    if COLUMNS == 1:
        return (tl.reshape(values, (ROWS,)),)
    else:
        halves = tl.permute(tl.reshape(values, (ROWS, 2, COLUMNS // 2)), (0, 2, 1))
        left, right = tl.split(halves)
        return _columns(left, ROWS, COLUMNS // 2) + _columns(right, ROWS, COLUMNS // 2)


@triton.jit
def _product(
    factors: tl.tuple,
    masks: tl.tuple,
    total: tl.tensor,
    channels: tl.tensor,
    strides: tl.tuple,
    TILE_REDUCED: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """Adds a product, (pixels, taps), given by where the rows and columns of its factors begin."""
    pixel, tap = factors
    is_pixel, is_tap = masks
    for start in range(0, channels, TILE_REDUCED):
        index = start + tl.arange(0, TILE_REDUCED)
        is_inside = index < channels
        pixels = pixel[:, None] + widened(index, WIDE)[None, :] * strides[0]
        left = tl.load(pixels, mask=is_pixel[:, None] & is_inside[None, :], other=0.0)
        taps = tap[None, :] + index[:, None] * strides[1]
        right = tl.load(taps, mask=is_inside[:, None] & is_tap[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def generate(
    input: tl.tensor,
    reduced: tl.tensor,
    matrix: tl.tensor,
    bias: tl.tensor,
    output: tl.tensor,
    input_strides: tl.tuple,
    reduced_strides: tl.tuple,
    matrix_strides: tl.tuple,
    output_strides: tl.tuple,
    channels: tl.tuple,
    reduced_channels: tl.tensor,
    input_size: tl.tuple,
    output_size: tl.tuple,
    window: tl.tuple,
    KERNEL_HEIGHT: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    TILE_CHANNELS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_REDUCED: tl.constexpr,
    TILE_TAPS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Generates the kernels of a tile of pixels, row by row, and applies them."""
    pixels = output_size[0] * output_size[1]
    image, group, channel, pixel = tile(pixels, channels, TILE_CHANNELS, TILE_PIXELS)
    row, column = pixel // output_size[1], pixel % output_size[1]
    is_channel, is_pixel = (channel < channels[1])[:, None], pixel < pixels
    channel = widened(group * channels[1] + channel, WIDE)
    input += image * input_strides[0]
    reduced += image * reduced_strides[0]
    reduced += pixel_offset(row, column, reduced_strides[2], reduced_strides[3], WIDE)
    strides = (reduced_strides[1], matrix_strides[1])
    total = tl.zeros((TILE_CHANNELS, TILE_PIXELS), ACCUMULATOR)
    for i in range(KERNEL_HEIGHT):
        tap = tl.arange(0, TILE_TAPS)
        is_tap = tap < KERNEL_WIDTH
        tap += (group * KERNEL_HEIGHT + i) * KERNEL_WIDTH
        kernels = tl.zeros((TILE_PIXELS, TILE_TAPS), ACCUMULATOR)
        if bias is not None:
            kernels += tl.load(bias + tap, mask=is_tap, other=0.0).to(ACCUMULATOR)[None, :]
        factors, masks = (reduced, matrix + tap * matrix_strides[0]), (is_pixel, is_tap)
        kernels = _product(
            factors, masks, kernels, reduced_channels, strides, TILE_REDUCED, PRECISION, WIDE
        )
        taps = _columns(kernels, TILE_PIXELS, TILE_TAPS)
        y = row * window[0] - window[2] + i * window[4]
        is_row = is_pixel & (y >= 0) & (y < input_size[0])
        for j in tl.static_range(0, KERNEL_WIDTH):
            x = column * window[1] - window[3] + j * window[5]
            is_read = is_row & (x >= 0) & (x < input_size[1])
            offset = pixel_offset(y, x, input_strides[2], input_strides[3], WIDE)
            address = addresses(input, channel, input_strides[1], offset)
            value = tl.load(address, mask=is_channel & is_read[None, :], other=0.0)
            total += taps[j][None, :] * value.to(ACCUMULATOR)
    offset = pixel_offset(row, column, output_strides[2], output_strides[3], WIDE)
    address = addresses(output + image * output_strides[0], channel, output_strides[1], offset)
    tl.store(address, total.to(output.dtype.element_ty), mask=is_channel & is_pixel[None, :])
