"""The registries that RedNet's classes join.

mmcv 2 keeps convolution layers in mmengine's root ``MODELS`` registry (mmcv 1 had ``CONV_LAYERS``).
Every layer, backbone and builder of this package registers in a root registry, so that each
OpenMMLab library finds it without a scope prefix.
"""

from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    TRANSFORMS,
)

CONV_LAYERS = MODELS

__all__ = [
    "CONV_LAYERS",
    "DATASETS",
    "DATA_SAMPLERS",
    "HOOKS",
    "LOOPS",
    "MODELS",
    "OPTIM_WRAPPERS",
    "TRANSFORMS",
]
