"""Keys of the dicts that choose a detector's non-maximum suppression, ``nms`` in its settings.

Nothing else reads them before the first proposals are made, at the end of an epoch perhaps.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from numbers import Real
from typing import Any

from mmengine.config import Config

from rednet.cli.config_keys import fields
from rednet.cli.failures import short
from rednet.cli.suggestions import did_you_mean
from rednet.errors import UserError

_OPERATORS = ("nms", "soft_nms", "nms_rotated", "nms_quadri")
# What mmcv.ops.batched_nms takes itself, and what mmcv still calls iou_threshold by.
_OTHERS = ("type", "class_agnostic", "split_thr", "iou_thr")
_OPERANDS = ("boxes", "dets", "scores")


def check_nms_keys(config: Config, scope: str | None) -> None:
    """Refuses an operator that mmcv does not have, an argument that it does not take, and texts.

    Args:
        config: The config.
        scope: The library whose types have no prefix. Others than mmdet may have other operators.

    Raises:
        UserError: With the key, its value and what was expected.
    """
    if scope != "mmdet":
        return
    for key, node in fields(config.get("model"), "model"):
        if key.rpartition(".")[2] == "nms" and isinstance(node, Mapping):
            _check_nms(key, node)


def _check_nms(key: str, node: Mapping[str, Any]) -> None:
    name = node.get("type", "nms")
    if name not in _OPERATORS:
        advice = did_you_mean(str(name), _OPERATORS)
        raise UserError(f"{key}.type must be one of {', '.join(_OPERATORS)}, got {name!r}{advice}")
    known = {*_parameters(name), *_OTHERS}
    for argument, value in node.items():
        if argument not in known:
            advice = did_you_mean(str(argument), known)
            line = f"{key}.{argument}={short(value)}: {name} has no argument {argument!r}"
            raise UserError(line + advice)
        if argument.endswith(("_threshold", "_thr")) and not isinstance(value, Real):
            raise UserError(f"{key}.{argument} must be a number, got {value!r}")


def _parameters(name: str) -> set[str]:
    operator = getattr(importlib.import_module("mmcv.ops"), name)
    return set(inspect.signature(operator).parameters) - {*_OPERANDS}
