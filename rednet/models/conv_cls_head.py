"""A classification head with a convolution layer as its classifier."""

from __future__ import annotations

from typing import Any

from mmcv.cnn import build_conv_layer
from torch import nn

from rednet.registry import MODELS


@MODELS.register_module(name="ConvClsHead")
def build_conv_cls_head(
    num_classes: int,
    in_channels: int,
    conv_cfg: dict[str, Any] | None = None,
    **head_cfg: Any,
) -> nn.Module:
    """Builds mmpretrain's ``LinearClsHead`` with a 1 x 1 convolution layer as its linear layer.

    CondConv's publication makes the classifier conditional as well: a linear layer is a 1 x 1
    convolution of a single pixel.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        conv_cfg: Config of the layer, ``dict(type='CondConv2d')`` for example.
        **head_cfg: Further arguments of ``LinearClsHead``, such as ``loss``.

    Returns:
        The head; its layer is ``fc.1``.

    Raises:
        KeyError: If mmpretrain is not installed.
    """
    config = dict(num_classes=num_classes, in_channels=in_channels, **head_cfg)
    head = MODELS.build(dict(type="mmpretrain.LinearClsHead", **config))
    head.fc = nn.Sequential(
        nn.Unflatten(1, (in_channels, 1, 1)),
        build_conv_layer(conv_cfg, in_channels, num_classes, 1),
        nn.Flatten(),
    )
    return head
