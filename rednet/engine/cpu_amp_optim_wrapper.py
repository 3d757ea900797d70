"""Mixed precision on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from rednet.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Runs the forward pass on a CPU in bfloat16 where PyTorch's autocast allows it.

    mmengine's ``AmpOptimWrapper`` refuses a CPU. The weights stay in float32, and bfloat16 has
    float32's range, so the loss is not scaled. The arguments are those of ``OptimWrapper``.

    Examples:
        >>> optim_wrapper = dict(type='CpuAmpOptimWrapper', optimizer=dict(type='SGD', lr=0.1))
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enters autocast for the forward pass."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
