"""Drop-in convolution layers, registered so that ``conv_cfg=dict(type=...)`` builds them."""

from rednet.layers.conv_aws import ConvAWS2d
from rednet.layers.involution import Involution2d

__all__ = ["ConvAWS2d", "Involution2d"]
