"""Drop-in convolution layers, registered so that ``conv_cfg=dict(type=...)`` builds them."""

from rednet.layers.involution import Involution2d

__all__ = ["Involution2d"]
