"""Backbones and model surgery."""

from rednet.models.rednet import RedNet

__all__ = ["RedNet"]
