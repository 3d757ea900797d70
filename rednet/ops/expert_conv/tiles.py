"""How many samples and output channels to convolve at a time on a CPU.

Moving the kernels of a large batch through memory costs more than convolving, so they are mixed,
used and dropped in tiles that stay in the cache.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from torch import Tensor

from rednet.ops.expert_conv.forms import is_pointwise
from rednet.ops.expert_conv.problem import Window, output_size

# C libraries serve large blocks with fresh pages, whose first touch is slow: glibc from 32 MiB on.
# A convolution copies its kernels once, and its derivative twice, beside a gradient.
FORWARD_BYTES = 31 * 2**20
TRAINING_BYTES = 20 * 2**20
# Beyond that, tiles whose tensors stay in the cache, with room for the convolution's own copies.
_TILE_BYTES = 10 * 2**20
# Samples per tile, if their kernels fit: one pass over the experts serves them all.
_SHARED_PASS = 8
# Tiles have a multiple of this many output channels, which fills the vectors of every CPU.
_FILTERS_STEP = 16


class Tile(NamedTuple):
    """How many samples and output channels to convolve at a time."""

    samples: int
    filters: int


def tile_size(input: Tensor, experts: Tensor, window: Window, most_kernel_bytes: int) -> Tile:
    """What to convolve at a time: all, if it fits. Other devices than CPUs were not measured."""
    batch, filters = input.shape[0], experts.shape[1]
    if input.device.type != "cpu":
        return Tile(batch, filters)
    filter_bytes = experts.shape[2:].numel() * input.element_size()
    kernel_bytes = filters * filter_bytes
    image_bytes = _image_bytes(input, experts, window)
    if batch * kernel_bytes <= most_kernel_bytes and batch * image_bytes <= FORWARD_BYTES:
        return Tile(batch, filters)
    if window.groups == 1 and kernel_bytes > image_bytes:
        room = _TILE_BYTES // (filter_bytes * min(batch, _SHARED_PASS))
        filters = _even_part(filters, room, _FILTERS_STEP)
    samples = _TILE_BYTES // max(filters * filter_bytes, image_bytes)
    return Tile(_even_part(batch, samples), filters)


def _even_part(length: int, most: int, step: int = 1) -> int:
    """The length of equal parts, a multiple of ``step`` up to ``most``, but at least one step."""
    parts = ceil(length / max(most - most % step, step))
    return min(length, ceil(length / (parts * step)) * step)


def _image_bytes(input: Tensor, experts: Tensor, window: Window) -> int:
    """The larger of a sample's input and output, where a form copies them; else 0."""
    kernel_height, kernel_width = experts.shape[3:]
    if is_pointwise((kernel_height, kernel_width), window):
        return 0
    height, width = input.shape[2:]
    output_height, output_width = output_size(input, experts, window)
    numbers = max(input.shape[1] * height * width, experts.shape[1] * output_height * output_width)
    return numbers * input.element_size()
