"""Building the model of a config and loading its weights."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from rednet.cli.failures import setting_up
from rednet.cli.nms_keys import check_nms_keys
from rednet.cli.preflight import check_pretrained, check_scope
from rednet.cli.unread_keys import check_unread_keys
from rednet.errors import UserError
from rednet.layers.base import ConvLayer

LIBRARIES = ("mmpretrain", "mmdet", "mmseg")


def build_model(config: Config) -> nn.Module:
    """Builds the model of a config in the scope of the library that the config names.

    Raises:
        UserError: If that library is not installed or the model cannot be built.
    """
    with setting_up():
        require_model(config)
        scope = scope_of(config)
        check_scope(scope)
        init_default_scope(scope or "mmengine")
        check_pretrained(config)
        check_unread_keys(config, scope, parts=("model",))
        check_nms_keys(config, scope)
        return MODELS.build(config.model)


def require_model(config: Config, *parts: str) -> None:
    """Checks that a config has a model, and the model the parts that are needed.

    Raises:
        UserError: If one is missing or not a dict.
    """
    node: Any = config
    for depth, part in enumerate(("model", *parts)):
        node = node.get(part)
        if not isinstance(node, Mapping):
            key = ".".join(("model", *parts)[: depth + 1])
            raise UserError(f"config {config.filename}: {key} must be a dict, got {node!r}")
    if "type" not in config.model:
        raise UserError(f"config {config.filename}: model has no type")


def scope_of(config: Config) -> str | None:
    """The library that a config is written for, or None for no library of OpenMMLab's.

    New-style configs, which import their types, set ``default_scope=None``. There the model's type
    tells, or that of the ``module`` in it if the model is ``Deployed`` or a ``SwapConv``.
    """
    scope = config.get("default_scope")
    model = config.get("model")
    while scope is None and isinstance(model, Mapping):
        kind = model.get("type", "")
        path = kind if isinstance(kind, str) else kind.__module__
        library = path.partition(".")[0]
        if library in LIBRARIES and library != path:
            return library
        model = model.get("module")
    return scope


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a model expects: those of its first convolution."""
    backbone = getattr(model, "backbone", model)
    convolutions = (each for each in backbone.modules() if isinstance(each, (nn.Conv2d, ConvLayer)))
    first = next(convolutions, None)
    return 3 if first is None else first.in_channels


def with_preprocessor(config: Config) -> Config:
    """A copy whose model has the data preprocessor, which mmpretrain's configs keep apart."""
    require_model(config)
    config = deepcopy(config)  # building changes it
    if "data_preprocessor" in config:
        config.model.setdefault("data_preprocessor", config.data_preprocessor)
    return config


def build_with_stem(config: Config, stem_kernel_size: int | None) -> nn.Module:
    """Builds the model of a config, with another kernel size in the stem of its RedNet.

    Args:
        config: The config. It is changed if its backbone is a RedNet.
        stem_kernel_size: Kernel size of the stem's involution, or None to keep the config's.
    """
    require_model(config, "backbone")
    backbone = config.model.backbone
    if stem_kernel_size is not None and backbone.get("type") == "RedNet":
        backbone.stem_kernel_size = stem_kernel_size
    return build_model(config)


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Loads a checkpoint that must fit the model exactly.

    Returns:
        The checkpoint.

    Raises:
        UserError: If an entry is missing, unexpected or of another shape.
    """
    try:
        return load_checkpoint(model, path, map_location="cpu", strict=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the config: {error}") from error
