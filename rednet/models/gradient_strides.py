"""Gradients of 1 x 1 convolutions in the strides of their weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.hooks import unserializable_hook


def keep_gradient_strides(model: nn.Module) -> None:
    """Gives the gradient of every 1 x 1 convolution's weight the strides of the weight.

    PyTorch computes the gradient of an image in channels_last in the strides of that format. For a
    1 x 1 kernel both lie the same in memory: the strides differ along sides of length 1 only. But
    DistributedDataParallel compares them, and warns and copies where they differ.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.weight.register_hook(_strides_hook(module.weight))


def _strides_hook(weight: Tensor) -> Callable[[Tensor], Tensor]:
    @unserializable_hook
    def hook(grad: Tensor) -> Tensor:
        alike = grad.is_contiguous() and weight.is_contiguous()
        return grad.as_strided(grad.shape, weight.stride()) if alike else grad

    return hook
