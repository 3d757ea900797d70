"""Pictures of what the layers compute: heat maps, kernels, attention and weights."""

from rednet.visualization.recorders import RECORDERS
from rednet.visualization.watching import find_layers, view

__all__ = ["RECORDERS", "find_layers", "view"]
