"""Convolution, norm, sum and ReLU in inference: what follows the convolution in one pass.

Each of the three reads and writes a whole map, and the maps of a network do not stay in the cache.
Where nothing can tell the difference, a compiled kernel does all of them at once, in the memory of
the convolution's output, and a 1 x 1 convolution with them; elsewhere the modules are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from rednet.layers.base import is_unmodified
from rednet.ops.autocast import autocast_dtype
from rednet.ops.checks import is_plain
from rednet.ops.cpu import finishing, pointwise
from rednet.ops.tracing import is_recorded, listed

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
    convolution: Any,
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
    following = _following(norm, activation, addend)
    if following is not None and _is_pointwise(convolution, input, following):
        with listed("pointwise"):
            return pointwise.convolve(
                input, convolution.weight, convolution.bias, convolution.stride, following
            )
    output = convolution(input)
    if (
        following is None
        or finishing.unsupported_reason(output) is not None
        or not _fits(following, output.dtype, output.shape)
    ):
        output = output if norm is None else norm(output)
        output = output if addend is None else output + addend
        return output if activation is None else activation(output)
    result = output if is_unmodified(convolution, *makers) else torch.empty_like(output)
    finishing.finish(output, result, following)
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


def _following(
    norm: Any, activation: nn.Module | None, addend: Tensor | None
) -> finishing.Following | None:
    """What the kernels need to know of what follows; None where they cannot do what it does."""
    statistics: _Statistics = None, None, None, None
    if norm is not None and not is_unmodified(norm, nn.Identity):
        if not is_unmodified(norm, nn.BatchNorm2d) or norm.training or norm.running_var is None:
            return None
        statistics = norm.running_mean, norm.running_var, norm.weight, norm.bias
    if activation is not None and not is_unmodified(activation, nn.ReLU):
        return None
    epsilon = getattr(norm, "eps", 0.0)
    return finishing.Following(statistics, epsilon, addend, activation is not None)


def _fits(following: finishing.Following, dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether its tensors are as the kernels need them for an output of this dtype and shape."""
    addend = following.addend
    if addend is not None and not (
        addend.dtype == dtype
        and addend.shape == shape
        and finishing.unsupported_reason(addend) is None
    ):
        return False
    return all(
        each is None
        or is_plain(each)
        and each.is_cpu
        and each.dtype == dtype
        and each.shape == shape[1:2]
        and each.is_contiguous()
        for each in following.statistics
    )


def _is_pointwise(convolution: Any, input: Tensor, following: finishing.Following) -> bool:
    """Whether one kernel may convolve and do what follows."""
    if not (
        is_unmodified(convolution, nn.Conv2d)
        and convolution.kernel_size == (1, 1)
        and convolution.padding == (0, 0)
        and autocast_dtype("cpu") is None
    ):
        return False
    weight, bias, stride = convolution.weight, convolution.bias, convolution.stride
    if pointwise.unsupported_reason(input, weight, bias) is not None:
        return False
    return _fits(following, input.dtype, pointwise.output_shape(input, weight, stride))
