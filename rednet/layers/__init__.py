"""Drop-in convolution layers, registered for ``conv_cfg=dict(type=...)``."""

from rednet.layers.acblock import ACBlock
from rednet.layers.condconv import CondConv2d
from rednet.layers.conv_aws import ConvAWS2d
from rednet.layers.dynamic_conv import DynamicConv2d
from rednet.layers.involution import Involution2d
from rednet.layers.odconv import ODConv2d
from rednet.layers.saconv import SAConv2d
from rednet.layers.spconv import SPConv2d

__all__ = [
    "ACBlock",
    "CondConv2d",
    "ConvAWS2d",
    "DynamicConv2d",
    "Involution2d",
    "ODConv2d",
    "SAConv2d",
    "SPConv2d",
]
