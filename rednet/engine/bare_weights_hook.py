"""Loading files that hold weights only."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from rednet.registry import HOOKS

_PARALLEL = "module."


@HOOKS.register_module()
class BareWeightsHook(Hook):
    """Gives a checkpoint the form that mmengine's other hooks expect.

    A file may hold the weights at its top level, and their names may begin with
    ``DistributedDataParallel``'s ``module.``. mmengine loads both into the model, but its
    ``EMAHook`` fails at the first and leaves its average as it was at the second.
    ``tools/train.py`` and ``tools/test.py`` add the hook.

    Examples:
        >>> custom_hooks = [dict(type='BareWeightsHook')]
    """

    priority = "VERY_HIGH"

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Changes the checkpoint in place."""
        if "state_dict" not in checkpoint:
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint["state_dict"] = weights
        checkpoint["state_dict"] = without_wrapper(checkpoint["state_dict"])


def without_wrapper(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their names without the prefix of ``DistributedDataParallel``."""
    return {name.removeprefix(_PARALLEL): value for name, value in weights.items()}
