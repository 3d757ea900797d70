"""Backbones and model surgery."""

from rednet.models.rednet import RedNet
from rednet.models.swap_conv import swap_conv

__all__ = ["RedNet", "swap_conv"]
