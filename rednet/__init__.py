"""RedNet: involution, RedNet backbones and drop-in convolution layers for OpenMMLab.

Importing this package registers everything it offers. Where mmcv has no compiled operators,
:mod:`rednet.mmcv_ops` offers them.
"""

from rednet import (
    checkpoint,
    datasets,
    deploy,
    engine,
    layers,
    mmcv_ops,
    models,
    ops,
    visualization,
)
from rednet.deploy import switch_to_deploy
from rednet.models import swap_conv
from rednet.version import __version__

__all__ = [
    "__version__",
    "checkpoint",
    "datasets",
    "deploy",
    "engine",
    "layers",
    "mmcv_ops",
    "models",
    "ops",
    "swap_conv",
    "switch_to_deploy",
    "visualization",
]
