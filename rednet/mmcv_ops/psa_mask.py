"""The masks of point-wise spatial attention: from positions in a window to positions in the map.

From `PSANet: Point-wise Spatial Attention Network for Scene Parsing
<https://hszhao.github.io/projects/psanet>`_.
"""

from __future__ import annotations

import torch
from torch import Tensor

# mmcv's number for the type; 1 is `distribute`.
_COLLECT = 0


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fills the output, (N, h_feature * w_feature, h_feature, w_feature).

    With `collect`, ``output[n, q, p]`` is the weight that pixel p gives to pixel q: the entry of
    p's window, (N, h_mask * w_mask, h_feature, w_feature), at q's place relative to p, and 0
    outside the window. With `distribute` p and q change places.

    Args:
        input: The windows.
        output: The masks.
        psa_type: 0 for `collect`, 1 for `distribute`.
        num_: N.
        h_feature: Rows of the map.
        w_feature: Columns of the map.
        h_mask: Rows of a window.
        w_mask: Columns of a window.
        half_h_mask: Row of a window's center.
        half_w_mask: Column of a window's center.
    """
    half = (half_h_mask, half_w_mask)
    index, is_inside = _places((h_feature, w_feature), (h_mask, w_mask), half, input.device)
    windows = input.flatten(2)
    collected = windows.gather(1, index.expand(num_, -1, -1)) * is_inside
    result = collected if psa_type == _COLLECT else collected.transpose(1, 2)
    output.copy_(result.reshape(output.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fills ``grad_input``, of the windows' shape; the other arguments are the forward pass's."""
    half = (half_h_mask, half_w_mask)
    index, is_inside = _places((h_feature, w_feature), (h_mask, w_mask), half, grad_output.device)
    grad = grad_output.flatten(2)
    collected = (grad if psa_type == _COLLECT else grad.transpose(1, 2)) * is_inside
    total = torch.zeros_like(grad_input).flatten(2)
    total.scatter_add_(1, index.expand(num_, -1, -1), collected)
    grad_input.copy_(total.view_as(grad_input))


def _places(
    feature: tuple[int, int], mask: tuple[int, int], half: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """For pixels q and p, q's place in p's window and whether it lies inside, each (HW, HW)."""
    rows, columns = (torch.arange(length, device=device) for length in feature)
    row = rows[:, None, None, None] - rows[:, None] + half[0]  # (q row, 1, p row, 1)
    column = columns[:, None, None] - columns + half[1]  # (q column, 1, p column)
    is_inside = (row >= 0) & (row < mask[0]) & (column >= 0) & (column < mask[1])
    place = torch.where(is_inside, row * mask[1] + column, torch.zeros_like(row))
    pixels = feature[0] * feature[1]
    return place.reshape(pixels, pixels), is_inside.reshape(pixels, pixels)
