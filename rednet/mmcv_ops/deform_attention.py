"""Multi-scale deformable attention, from `Deformable DETR <https://arxiv.org/abs/2010.04159>`_.

mmcv computes it by PyTorch's operators on the CPU and by the function that is registered here on
other devices.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rednet.mmcv_ops.autograd import at_least_float32, gradients


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Samples every level at the locations and sums by the attention weights.

    Args:
        value: Shape (N, keys of all levels, heads, D).
        spatial_shapes: Height and width of each level, shape (L, 2).
        level_start_index: Where each level begins among the keys; it follows from the shapes.
        sampling_locations: Shape (N, queries, heads, L, points, 2), as (x, y) from 0 to 1.
        attention_weights: Shape (N, queries, heads, L, points).
        im2col_step: Images at a time in mmcv's kernels; not used.

    Returns:
        Shape (N, queries, heads * D).
    """
    values, locations, weights = at_least_float32(value, sampling_locations, attention_weights)
    return _attend(values, locations, weights, spatial_shapes).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_locations: Tensor,
    grad_attention_weights: Tensor,
    im2col_step: int,
) -> None:
    """Fills the gradients of the three floating inputs."""
    grad, *inputs = at_least_float32(grad_output, value, sampling_locations, attention_weights)

    def attended(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return _attend(values, locations, weights, spatial_shapes)

    results = gradients(attended, inputs, grad)
    grad_value.copy_(results[0])
    grad_sampling_locations.copy_(results[1])
    grad_attention_weights.copy_(results[2])


def _attend(value: Tensor, locations: Tensor, weights: Tensor, spatial_shapes: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    queries = locations.shape[1]
    sizes: list[list[int]] = spatial_shapes.tolist()
    levels = value.split([height * width for height, width in sizes], dim=1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (N * heads, queries, L, points, 2)
    shares = weights.transpose(1, 2).flatten(0, 1)  # (N * heads, queries, L, points)
    total = value.new_zeros(batch * heads, depth, queries)
    for index, (keys, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
        image = keys.permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
        samples = F.grid_sample(image, grids[:, :, index], align_corners=False)
        total = total + (samples * shares[:, None, :, index]).sum(dim=-1)
    return total.view(batch, heads * depth, queries).transpose(1, 2).contiguous()
