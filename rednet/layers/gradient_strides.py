"""Gradients in the strides of their parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook

from rednet.layers.base import ConvLayer


def keep_gradient_strides(module: nn.Module) -> None:
    """Gives each parameter's gradient the strides of the parameter where they lie alike in memory.

    Along a side of length 1, as the sides of a 1 x 1 kernel are, strides have no meaning, and
    PyTorch computes gradients with others than the parameter's: in channels_last, or by a matrix
    product. But DistributedDataParallel compares them, and warns and copies where they differ.

    Args:
        module: A layer, which calls this for itself, or a model: layers in it are left out.
    """
    parameters = dict.fromkeys(module.parameters())
    for layer in module.modules():
        if isinstance(layer, ConvLayer) and layer is not module:
            for parameter in layer.parameters():
                parameters.pop(parameter, None)
    for parameter in parameters:
        if 1 in parameter.shape and parameter.requires_grad:
            parameter.register_hook(_strides_hook(parameter))


def _strides_hook(parameter: Tensor) -> Callable[[Tensor | None], Tensor | None]:
    @unserializable_hook
    def hook(grad: Tensor | None) -> Tensor | None:
        if grad is None or grad.stride() == parameter.stride():
            return grad
        sides = zip(grad.shape, grad.stride(), parameter.stride(), strict=True)
        alike = all(length == 1 or own == other for length, own, other in sides)
        return grad.as_strided(grad.shape, parameter.stride()) if alike else grad

    return hook
