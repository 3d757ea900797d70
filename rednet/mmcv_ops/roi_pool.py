"""RoIPool, from `Fast R-CNN <https://arxiv.org/abs/1504.08083>`_, as mmcv defines its bins.

torchvision's operator rounds a region to whole pixels first, mmcv does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32

# Chunks of regions read at most this many pixels, which bounds the memory.
_PIXELS_AT_ONCE = 2**24


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fills the output with the largest pixel of each bin, 0 where a bin is empty.

    Args:
        input: Shape (N, C, H, W).
        rois: Shape (R, 5): image index, x1, y1, x2, y2 in image pixels, inclusive.
        output: Shape (R, C, pooled_height, pooled_width).
        argmax: The same shape; filled with the pixel's index in its plane, -1 for an empty bin.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the feature map in a pixel of the image.
    """
    values, regions = at_least_float32(input, rois)
    rows = _bin_edges(regions[:, 2], regions[:, 4], spatial_scale, pooled_height, input.shape[2])
    columns = _bin_edges(regions[:, 1], regions[:, 3], spatial_scale, pooled_width, input.shape[3])
    if not len(rois):
        return
    tallest = max(1, int((rows[1] - rows[0]).max()))
    widest = max(1, int((columns[1] - columns[0]).max()))
    pixels = input.shape[1] * pooled_height * pooled_width * tallest * widest
    for chunk in torch.arange(len(rois), device=rois.device).split(
        max(1, _PIXELS_AT_ONCE // pixels)
    ):
        y, is_row = _positions(rows[0][chunk], rows[1][chunk], tallest)
        x, is_column = _positions(columns[0][chunk], columns[1][chunk], widest)
        index = y[:, :, None, :, None] * input.shape[3] + x[:, None, :, None, :]
        is_read = is_row[:, :, None, :, None] & is_column[:, None, :, None, :]
        largest, place = _largest(values[regions[chunk, 0].long()], index, is_read)
        output[chunk] = largest.to(output.dtype)
        argmax[chunk] = place.to(argmax.dtype)


def _bin_edges(
    first: Tensor, last: Tensor, scale: float, bins: int, length: int
) -> tuple[Tensor, Tensor]:
    """First pixel of each bin along one side and the one behind its last, each (R, bins)."""
    start = first * scale
    size = ((last + 1) * scale - start).clamp(min=0) / bins
    index = torch.arange(bins, device=first.device, dtype=start.dtype)
    begin = (index * size[:, None] + start[:, None]).floor().long().clamp(0, length)
    end = ((index + 1) * size[:, None] + start[:, None]).ceil().long().clamp(0, length)
    # mmcv leaves out regions without an extent.
    return begin, torch.where(size[:, None] > 0, end, begin)


def _positions(begin: Tensor, end: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Pixels of each bin, (R, bins, most), and whether they belong to it."""
    position = begin[..., None] + torch.arange(most, device=begin.device)
    is_inside = position < end[..., None]
    return torch.where(is_inside, position, torch.zeros_like(position)), is_inside


def _largest(images: Tensor, index: Tensor, is_read: Tensor) -> tuple[Tensor, Tensor]:
    """Largest pixel of each bin and its index, for images (R, C, H, W), each (R, C, bins, bins)."""
    regions, channels = images.shape[:2]
    bins = index.shape[1:3]
    flat = index.reshape(regions, 1, -1).expand(-1, channels, -1)
    pixels = images.flatten(2).gather(2, flat).view(regions, channels, *bins, -1)
    is_read = is_read.flatten(3).unsqueeze(1)
    largest, best = pixels.masked_fill(~is_read, -torch.inf).max(dim=-1)
    places = index.flatten(3).unsqueeze(1).expand(-1, channels, -1, -1, -1)
    place = places.gather(-1, best.unsqueeze(-1)).squeeze(-1)
    is_empty = ~is_read.any(dim=-1)
    return largest.masked_fill(is_empty, 0), place.masked_fill(is_empty, -1)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Adds each bin's gradient to the pixel that it took; fills ``grad_input``, (N, C, H, W)."""
    channels, plane_size = grad_input.shape[1], grad_input.shape[2] * grad_input.shape[3]
    channel = torch.arange(channels, device=rois.device)
    plane = (rois[:, :1].long() * channels + channel)[:, :, None, None]
    is_taken = argmax >= 0
    (grad,) = at_least_float32(grad_output)
    index = (plane * plane_size + argmax.long().clamp(min=0)).flatten()
    total = grad.new_zeros(grad_input.numel())
    total.index_add_(0, index, (grad * is_taken).flatten())
    grad_input.copy_(total.view_as(grad_input))
