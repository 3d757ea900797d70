"""The compiled kernels that mix experts, for ``rednet.ops.expert_conv``; see src/mixing.h."""

from __future__ import annotations

import torch
from torch import Tensor

from rednet.ops.cpu import loader

DTYPES = (torch.float64, torch.float32)
# So many numbers of every row are treated at a time: few enough for a small second-level cache.
_PIECE = 2048


def mix(experts: Tensor, mixture: Tensor, kernels: Tensor) -> None:
    """Fills ``kernels``, (N, M), with the product of ``mixture``, (N, K), and experts, (K, M)."""
    mixed = loader.Mixture.describe(experts, mixture, kernels, piece=_PIECE)
    loader.call("mix", experts.dtype, mixed)


def mix_gradients(
    grad: Tensor, experts: Tensor, mixture: Tensor, grad_experts: Tensor, adds: bool
) -> Tensor:
    """Fills the gradient of the experts, or adds to it, and returns that of the mixture."""
    pieces = -(-experts.shape[1] // _PIECE)
    parts = mixture.new_empty(pieces, mixture.numel())
    mixed = loader.Mixture.describe(
        experts, mixture, grad, grad_experts, parts, piece=_PIECE, adds=adds
    )
    loader.call("mix_gradients", experts.dtype, mixed)
    return parts.sum(0).view(mixture.shape)
