"""Backbones and model surgery."""

from rednet.models.cifar import CifarQuick, CifarResNet, WideResNet
from rednet.models.conv_cls_head import build_conv_cls_head
from rednet.models.dropout_cls_head import build_dropout_cls_head
from rednet.models.model_index import register_models
from rednet.models.rednet import RedNet
from rednet.models.swap_conv import SwapConv, swap_conv

register_models()

__all__ = [
    "CifarQuick",
    "CifarResNet",
    "RedNet",
    "SwapConv",
    "WideResNet",
    "build_conv_cls_head",
    "build_dropout_cls_head",
    "swap_conv",
]
