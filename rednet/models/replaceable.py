"""Which convolutions a layer can stand in for: those that compute what their arguments say."""

from __future__ import annotations

import logging

from mmcv.cnn import Conv2d as WrappedConv2d
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmengine.logging import print_log
from torch import nn

from rednet.errors import ArgumentError
from rednet.layers.base import has_hooks

# A subclass may override these; mmcv's own two are known: the first adds zeros, which a layer does
# too, and the second only serves empty batches in old versions of PyTorch.
_COMPUTING = ("forward", "_conv_forward", "__call__")
_KNOWN = (Conv2dAdaptivePadding, WrappedConv2d, nn.Conv2d)


def check_replaceable(name: str, convolution: nn.Conv2d, copy_weights: bool) -> None:
    """Refuses a convolution that computes something else than its arguments and weights say.

    Args:
        name: Its name, for the message; empty for the module itself.
        convolution: The convolution.
        copy_weights: Whether the layer gets the convolution's weights, which may then be computed
            from others. A warning says that they are taken as they are now.

    Raises:
        ArgumentError: If no layer can take its place.
    """
    name, kind = name or "the module", type(convolution)
    known = next(each for each in _KNOWN if isinstance(convolution, each))
    changed = [each for each in _COMPUTING if getattr(kind, each) is not getattr(known, each)]
    if changed or "forward" in vars(convolution):
        raise ArgumentError(
            f"{name}: {kind.__name__} is a subclass of nn.Conv2d that computes something else "
            f"({(changed or ['forward'])[0]} is its own), which no layer takes over; leave it out "
            "by exclude"
        )
    computed = [each for each in ("weight", "bias") if each not in convolution._parameters]
    if computed and not copy_weights:
        raise ArgumentError(
            f"{name}: its {computed[0]} is computed from other parameters (parametrization, "
            "weight_norm, spectral_norm, pruning), which no layer takes over; remove that first, "
            "give copy_weights=True to take the values of now, or leave it out by exclude"
        )
    if computed:
        print_log(
            f"{name}: its {computed[0]} is computed from other parameters; the layer takes the "
            "values of now and learns them freely",
            logger="current",
            level=logging.WARNING,
        )
    elif has_hooks(convolution):
        raise ArgumentError(
            f"{name}: it has hooks, which the layer would not have; remove them first, or leave it "
            "out by exclude"
        )
