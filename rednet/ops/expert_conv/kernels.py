"""The kernels of all samples: experts mixed by the routing, then scaled by the factors."""

from __future__ import annotations

from torch import Tensor

from rednet.ops.expert_conv.mixing import mix
from rednet.ops.expert_conv.problem import Factors


def kernel_scale(factors: Factors, experts: Tensor, groups: int) -> Tensor | None:
    """The product of the factors, which broadcasts to (N, O, C / groups, Kh, Kw)."""
    _, filters, depth, height, width = experts.shape
    scale = None
    for factor, shape in (
        (factors.channels, (groups, 1, depth, 1, 1)),
        (factors.filters, (groups, filters // groups, 1, 1, 1)),
        (factors.taps, (1, 1, 1, height, width)),
    ):
        if factor is not None:
            shaped = factor.view(factor.shape[0], *shape)
            scale = shaped if scale is None else scale * shaped
    if scale is None:
        return None
    if factors.channels is None and factors.filters is None:
        return scale[:, 0]
    return scale.expand(-1, -1, filters // groups, -1, -1, -1).flatten(1, 2)


def mix_kernels(experts: Tensor, routing: Tensor, scale: Tensor | None) -> Tensor:
    """The kernels of all samples, (N, O, C / groups, Kh, Kw)."""
    return scaled(mix_unscaled(experts, routing), scale)


def mix_unscaled(experts: Tensor, routing: Tensor) -> Tensor:
    """The kernels before they are scaled."""
    return mix(experts.flatten(1), routing).view(routing.shape[0], *experts.shape[1:])


def scaled(kernels: Tensor, scale: Tensor | None) -> Tensor:
    """The product with the scale, if there is one."""
    return kernels if scale is None else kernels * scale
