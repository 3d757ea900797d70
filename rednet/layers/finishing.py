"""Convolution, norm, sum and ReLU in inference: what follows the convolution in one pass.

Each of the three reads and writes a whole map, and the maps of a network do not stay in the cache.
Where nothing can tell the difference, a compiled kernel does all of them at once, in the memory of
the convolution's output; elsewhere the modules are called.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from rednet.layers.base import is_unmodified
from rednet.ops.checks import is_plain
from rednet.ops.cpu import finishing
from rednet.ops.tracing import is_recorded

_Statistics = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def may_finish(input: Tensor) -> bool:
    """Whether :func:`finish` may be called: nothing is to be differentiated, traced or recorded."""
    return (
        # First: torch 2.1 cannot compile the rest.
        not (torch.is_grad_enabled() or is_recorded())
        and type(input) is Tensor
        and input.device.type == "cpu"
    )


def finish(
    convolution: nn.Module,
    input: Tensor,
    norm: nn.Module | None,
    activation: nn.Module | None,
    addend: Tensor | None = None,
    *,
    makers: tuple[type[nn.Module], ...] = (nn.Conv2d,),
) -> Tensor:
    """``activation(norm(convolution(input)) + addend)``, where :func:`may_finish` says so.

    Args:
        convolution: Any module.
        input: What it is called with.
        norm: The norm, or None for none.
        activation: The activation, or None for none.
        addend: What is added before the activation, or None for nothing.
        makers: Types of convolutions whose output nobody else has, so that it may be overwritten.
    """
    output = convolution(input)
    statistics = _statistics(norm, output)
    if statistics is None or not _fits(output, activation, addend):
        output = output if norm is None else norm(output)
        output = output if addend is None else output + addend
        return output if activation is None else activation(output)
    result = output if is_unmodified(convolution, *makers) else torch.empty_like(output)
    epsilon = getattr(norm, "eps", 0.0)
    finishing.finish(output, result, statistics, epsilon, addend, activation is not None)
    return result


def finish_module(module: Any, input: Tensor) -> Tensor:
    """A module's output, where :func:`may_finish` says so; a ``ConvModule`` is finished."""
    if not is_plain_module(module):
        return module(input)
    norm = module.norm if module.with_norm else None
    return finish(module.conv, input, norm, module.activate if module.with_activation else None)


def is_plain_module(module: Any) -> bool:
    """Whether it is a ``ConvModule`` that only calls convolution, norm and activation in turn."""
    return (
        is_unmodified(module, ConvModule)
        and module.order == ("conv", "norm", "act")
        and not module.with_explicit_padding
        and getattr(module, "efficient_conv_bn_eval_forward", None) is None
    )


def _statistics(norm: Any, output: Tensor) -> _Statistics | None:
    """What the kernel needs to know of a norm; None where it is not one that only scales."""
    if norm is None or is_unmodified(norm, nn.Identity):
        return None, None, None, None
    if not is_unmodified(norm, nn.BatchNorm2d) or norm.training:
        return None
    tensors = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if tensors[1] is None:
        return None
    dtype, shape = output.dtype, output.shape[1:2]
    for each in tensors:
        if each is not None and not (
            is_plain(each)
            and each.is_cpu
            and each.dtype == dtype
            and each.shape == shape
            and each.is_contiguous()
        ):
            return None
    return tensors


def _fits(output: Tensor, activation: nn.Module | None, addend: Tensor | None) -> bool:
    return (
        (activation is None or is_unmodified(activation, nn.ReLU))
        and finishing.unsupported_reason(output) is None
        and (
            addend is None
            or addend.dtype == output.dtype
            and addend.shape == output.shape
            and finishing.unsupported_reason(addend) is None
        )
    )
