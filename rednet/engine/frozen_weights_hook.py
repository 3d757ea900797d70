"""A check that frozen weights have been trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from rednet.errors import UserError, first_names
from rednet.registry import HOOKS

_NAMES_SHOWN = 3
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


@HOOKS.register_module()
class FrozenWeightsHook(Hook):
    """Refuses to train a model whose frozen stages or norms hold random weights.

    A detector freezes its backbone's first stages and the statistics of its norms. This suits a
    pretrained backbone, but a backbone that starts from scratch cannot learn: nothing normalizes
    its activations. The hook checks the model after all weights are loaded, before the first
    iteration. A norm that would stay in eval mode and holds its initial state is an error; a norm
    without running statistics only if its parameters are frozen.

    It checks norms only: frozen random weights pass if a stage has no norm, as in a VGG, or if its
    norms were loaded and other parts were not. (The gates of a frozen ``CondConv2d`` or
    ``DynamicConv2d`` that loaded a plain convolution are random and do no harm: the mixture of its
    experts is that convolution.)

    Raises:
        UserError: If such norms are found. The message names them and the options that fix it.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Checks the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = untrained_frozen_norms(model)
        if not names:
            return
        shown = first_names(names, _NAMES_SHOWN)
        backbone = _backbone_option(runner.cfg)
        raise UserError(
            f"the model freezes weights that nothing has trained: the norms {shown} stay in "
            "eval mode and hold their initial values. Give the weights, with --cfg-options "
            f"{backbone}.init_cfg.type=Pretrained {backbone}.init_cfg.checkpoint=FILE "
            f"(a classifier's with {backbone}.init_cfg.prefix=backbone. too) or load_from=FILE, or "
            f"train from scratch, with --cfg-options {backbone}.frozen_stages=-1 "
            f"{backbone}.norm_eval=False"
        )


def _backbone_option(config: Mapping[str, Any]) -> str:
    """The dotted key of the backbone's config, inside of SwapConv where that wraps it."""
    key, backbone = "model.backbone", config["model"].get("backbone", {})
    while backbone.get("type") == "SwapConv":
        key, backbone = f"{key}.module", backbone["module"]
    return key


def untrained_frozen_norms(model: nn.Module) -> list[str]:
    """Finds the norms that would keep their initial state through a training.

    Args:
        model: The model; it is put into training mode.

    Returns:
        The names of the norms that are in eval mode then and hold one scale for all channels and no
        shift: batch norms with a running mean of zeros and a running variance of ones, and, without
        running statistics, norms whose parameters are frozen. (Statistics are not enough to
        decide: the weights of caffe's ResNets have theirs folded into scale and shift.)
    """
    model.train()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and not module.training and _is_initial(module)
    ]


def _is_initial(norm: Any) -> bool:
    constants = []
    if getattr(norm, "running_mean", None) is not None:
        constants += [(norm.running_mean, 0.0), (norm.running_var, 1.0)]
    elif norm.weight is None or norm.weight.requires_grad:
        return False  # there is nothing to train, or it is trained
    if norm.weight is not None:
        constants.append((norm.weight.data, norm.weight.flatten()[0].item()))
    if norm.bias is not None:
        constants.append((norm.bias.data, 0.0))
    return all(torch.all(tensor == value).item() for tensor, value in constants)
