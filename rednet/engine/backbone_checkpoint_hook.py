"""Checkpoints of a backbone alone, such as torchvision's, as ``load_from`` of a whole model."""

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
    """Gives the entries of a bare backbone's checkpoint the names that they have in the model.

    A torchvision file holds ``layer1.0.conv1.weight``, where a classifier, detector or segmentor
    has ``backbone.layer1.0.conv1.weight``: as ``load_from`` it would load nothing. Where not one
    entry has a name of the model, those that have a name of its backbone are renamed, and ``fc.*``
    becomes ``head.fc.*`` where the model has that and the classes are as many. Every other
    checkpoint stays as it is.
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
                f"{len(names)} entries of the checkpoint are a backbone's alone and were renamed, "
                "such as {} to {}".format(*next(iter(names.items())))
            )


def names_in_model(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, str]:
    """New names by old ones for the entries of a bare backbone's checkpoint.

    Args:
        model: A model, perhaps with a ``backbone``.
        state_dict: A checkpoint. Its values are compared with the model's classifier alone.

    Returns:
        Empty where the model has no backbone, or the checkpoint is not a backbone's alone.
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
