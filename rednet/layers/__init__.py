"""Drop-in convolution layers, registered so that ``conv_cfg=dict(type=...)`` builds them."""

from rednet.layers.acblock import ACBlock
from rednet.layers.conv_aws import ConvAWS2d
from rednet.layers.involution import Involution2d
from rednet.layers.saconv import SAConv2d
from rednet.layers.spconv import SPConv2d

__all__ = ["ACBlock", "ConvAWS2d", "Involution2d", "SAConv2d", "SPConv2d"]
