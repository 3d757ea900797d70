"""Backbones and model surgery."""

from rednet.models.deploy import switch_to_deploy
from rednet.models.model_index import register_models
from rednet.models.rednet import RedNet
from rednet.models.swap_conv import swap_conv

register_models()

__all__ = ["RedNet", "swap_conv", "switch_to_deploy"]
