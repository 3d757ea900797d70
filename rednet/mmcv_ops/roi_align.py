"""RoIAlign, from `Mask R-CNN <https://arxiv.org/abs/1703.06870>`_.

The average of a bin's samples is torchvision's operator, their maximum is made of PyTorch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32, gradients
from rednet.mmcv_ops.roi_sampling import Regions, bilinear, grid_groups, sample_points

# mmcv's number for the mode; 1 is the average.
_MAXIMUM = 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills the output with pooled features.

    Args:
        input: Shape (N, C, H, W).
        rois: Shape (R, 5): image index, x1, y1, x2, y2 in image pixels.
        output: Shape (R, C, aligned_height, aligned_width).
        argmax_y: In maximum mode, filled with the rows of the largest samples; as ``output``.
        argmax_x: The same for their columns.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Pixels of the feature map in a pixel of the image.
        sampling_ratio: Samples in a bin along each side; 0 for one per pixel.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: Whether pixel centers lie at half-integer coordinates.
    """
    values, regions = at_least_float32(input, rois.to(input.dtype) if _is_wide(input) else rois)
    bins = (aligned_height, aligned_width)
    if pool_mode != _MAXIMUM:
        pooled = torch.ops.torchvision.roi_align(
            values, regions, spatial_scale, *bins, sampling_ratio, aligned
        )
        output.copy_(pooled)
        return
    places = Regions.read(regions, spatial_scale, aligned)
    _pool_largest(values, places, bins, sampling_ratio, (output, argmax_y, argmax_x))


def _pool_largest(
    values: Tensor,
    places: Regions,
    bins: tuple[int, int],
    sampling_ratio: int,
    results: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fills the largest sample of each bin, its row and its column."""
    output, argmax_y, argmax_x = results
    for chunk, grid in grid_groups(places, bins, sampling_ratio, values.shape[1]):
        y, x = sample_points(places.start[chunk], places.extent[chunk], bins, grid)
        largest, index = bilinear(values, places.image[chunk], y, x).max(dim=-1)
        output[chunk] = largest.to(output.dtype)
        argmax_y[chunk] = _at(y, index).to(argmax_y.dtype)
        argmax_x[chunk] = _at(x, index).to(argmax_x.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fills ``grad_input``, (N, C, H, W); the other arguments are those of the forward pass."""
    grad, regions = at_least_float32(grad_output, rois)
    bins, size = (aligned_height, aligned_width), tuple(grad_input.shape)
    if pool_mode != _MAXIMUM:
        result = torch.ops.torchvision._roi_align_backward(
            grad, regions.to(grad.dtype), spatial_scale, *bins, *size, sampling_ratio, aligned
        )
        grad_input.copy_(result)
        return
    y, x = at_least_float32(argmax_y, argmax_x)
    image = rois[:, 0].long()

    def largest_samples(input: Tensor) -> Tensor:
        # Each channel has a place of its own: channels take the place of images.
        channels = input.shape[1]
        planes = input.flatten(0, 1).unsqueeze(1)
        plane = (image[:, None] * channels + torch.arange(channels, device=image.device)).flatten()
        return bilinear(planes, plane, y.flatten(0, 1), x.flatten(0, 1)).view_as(grad)

    (result,) = gradients(largest_samples, [torch.zeros_like(grad_input, dtype=grad.dtype)], grad)
    grad_input.copy_(result)


def _is_wide(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64)


def _at(coordinates: Tensor, index: Tensor) -> Tensor:
    """The coordinate of each channel's sample: (R, bins, bins, samples) at (R, C, bins, bins)."""
    channels = index.shape[1]
    shared = coordinates.unsqueeze(1).expand(-1, channels, -1, -1, -1)
    return shared.gather(-1, index.unsqueeze(-1)).squeeze(-1)
