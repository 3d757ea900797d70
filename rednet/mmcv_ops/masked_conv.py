"""The two halves of a convolution that is computed at some pixels only (stride 1, one image)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    features: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    data_col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Fills ``data_col`` with the windows of the chosen pixels.

    Args:
        features: Shape (1, C, H, W).
        mask_h_idx: Rows of the P chosen output pixels.
        mask_w_idx: Their columns.
        data_col: Shape (C * kernel_h * kernel_w, P).
        kernel_h: Rows of the kernel.
        kernel_w: Columns of the kernel.
        pad_h: Zeros above and below.
        pad_w: Zeros on the left and the right.
    """
    padded = F.pad(features[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx.long() + torch.arange(kernel_h, device=features.device)[:, None]
    columns = mask_w_idx.long() + torch.arange(kernel_w, device=features.device)[:, None]
    data_col.copy_(padded[:, rows[:, None], columns[None]].flatten(0, 2))


def masked_col2im_forward(
    masked_output: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    output: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Writes the chosen pixels' results, (channels, P), to the output, (1, channels, H, W)."""
    output[0, :, mask_h_idx.long(), mask_w_idx.long()] = masked_output
