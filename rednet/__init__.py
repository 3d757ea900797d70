"""RedNet: involution, RedNet backbones and drop-in convolution layers for OpenMMLab.

Importing this package registers everything it offers.
"""

from rednet import datasets, engine, layers, models, ops
from rednet.models import swap_conv, switch_to_deploy
from rednet.version import __version__

__all__ = [
    "__version__",
    "datasets",
    "engine",
    "layers",
    "models",
    "ops",
    "swap_conv",
    "switch_to_deploy",
]
