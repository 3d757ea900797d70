"""The compiled kernels that mix experts, for ``rednet.ops.expert_conv``; see src/mixing.h."""

from __future__ import annotations

from torch import Tensor

from rednet.ops.cpu import loader
from rednet.ops.geometry import ceil_div

# How many numbers of each row are treated at a time: few enough for a small second-level cache.
_PIECE = 2048


def mix(experts: Tensor, routing: Tensor, kernels: Tensor) -> None:
    """Fills ``kernels``, (N, M), with the product of ``routing``, (N, K), and experts, (K, M)."""
    mixed = loader.Mixture.describe(experts, routing, kernels, piece=_PIECE)
    loader.call("mix", experts.dtype, mixed)


def mix_gradients(
    grad: Tensor, experts: Tensor, routing: Tensor, grad_experts: Tensor, adds: bool
) -> Tensor:
    """Fills the gradient of the experts, or adds to it, and returns that of the routing."""
    pieces = ceil_div(experts.shape[1], _PIECE)
    parts = routing.new_empty(pieces, routing.numel())
    mixed = loader.Mixture.describe(
        experts, routing, grad, grad_experts, parts, piece=_PIECE, adds=adds
    )
    loader.call("mix_gradients", experts.dtype, mixed)
    return parts.sum(0).view(routing.shape)
