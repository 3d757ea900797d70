"""Padding of images by any amount, in any of ``nn.Conv2d``'s modes.

How much ``padding="same"`` pads is computed in :mod:`rednet.layers.base`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rednet.ops.geometry import Pair


def pad_image(image: Tensor, before: Pair, after: Pair, mode: str) -> Tensor:
    """Pads the two sides of an image.

    Unlike ``F.pad``, it reflects and wraps around a small image as often as it takes.

    Args:
        image: (N, C, H, W).
        before: Pixels added above and on the left.
        after: Pixels added below and on the right.
        mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.

    Returns:
        (N, C, before[0] + H + after[0], before[1] + W + after[1]).
    """
    # The most that F.pad adds on a side.
    limit = {"reflect": min(image.shape[2:]) - 1, "circular": min(image.shape[2:])}
    if mode not in limit or max(*before, *after) <= limit[mode]:
        amounts = (before[1], after[1], before[0], after[0])
        return F.pad(image, amounts, mode="constant" if mode == "zeros" else mode)
    rows = _sources(image.shape[2], before[0], after[0], mode, image.device)
    columns = _sources(image.shape[3], before[1], after[1], mode, image.device)
    return image.index_select(2, rows).index_select(3, columns)


def _sources(length: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    """The pixel that each pixel of a padded side repeats."""
    positions = torch.arange(-before, length + after, device=device)
    if mode == "circular":
        return positions % length
    period = max(2 * (length - 1), 1)
    folded = positions % period
    return torch.minimum(folded, period - folded) if length > 1 else torch.zeros_like(positions)
