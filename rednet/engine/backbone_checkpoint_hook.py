"""Loading a bare backbone's checkpoint, such as torchvision's, with ``load_from``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from rednet.registry import HOOKS

_PARALLEL = re.compile(r"^module\.")


@HOOKS.register_module()
class BackboneCheckpointHook(Hook):
    """Renames the entries of a bare backbone's checkpoint to their names in the model.

    A torchvision file holds ``layer1.0.conv1.weight``, where a classifier, detector or segmentor
    has ``backbone.layer1.0.conv1.weight``, so ``load_from`` would load nothing. If no entry has a
    name of the model, the entries with a name of its backbone are renamed, and ``fc.*`` becomes
    ``head.fc.*`` if the model has such entries of the same shape. Other checkpoints stay as they
    are.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Renames the entries in place."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state_dict = checkpoint.get("state_dict", checkpoint)
        names = names_in_model(model, state_dict)
        for old, new in names.items():
            state_dict[new] = state_dict.pop(old)
        if names:
            runner.logger.info(
                f"{len(names)} entries of the bare backbone's checkpoint were renamed, "
                "such as {} to {}".format(*next(iter(names.items())))
            )


def names_in_model(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, str]:
    """New names by old ones for the entries of a bare backbone's checkpoint.

    Args:
        model: A model, perhaps with a ``backbone``.
        state_dict: A checkpoint. Only its classifier's values are compared with the model's.

    Returns:
        Empty if the model has no backbone, or the checkpoint is not a bare backbone's.
    """
    own = model.state_dict()
    short = {name: _PARALLEL.sub("", name) for name in state_dict}
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module) or any(name in own for name in short.values()):
        return {}
    parts = tuple(f"{name}." for name, _ in backbone.named_children())
    names = {old: f"backbone.{name}" for old, name in short.items() if name.startswith(parts)}
    for old, name in short.items():
        classifier = own.get(f"head.{name}") if name.startswith("fc.") else None
        if names and classifier is not None and classifier.shape == state_dict[old].shape:
            names[old] = f"head.{name}"
    return names
