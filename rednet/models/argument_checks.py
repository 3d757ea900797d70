"""Checks of RedNet's arguments: each fault is one line that names the argument."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mmcv.cnn import build_norm_layer

from rednet.arguments import is_positive_int
from rednet.errors import ArgumentError
from rednet.registry import MODELS

OptionalConfig = dict | None

_OF_INVOLUTION = (
    "group_channels",
    "reduction_ratio",
    "norm_cfg",
    "init_cfg",
    "padding_mode",
    "regenerate_weight",
)


def check_one_of(name: str, value: Any, allowed: Collection) -> None:
    """Raises ArgumentError unless ``value`` is one of the ``allowed``."""
    if value not in tuple(allowed):
        raise ArgumentError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def check_multiple(name: str, channels: int, factor: int) -> None:
    """Raises ArgumentError unless ``channels`` is a positive multiple of ``factor``."""
    if not is_positive_int(channels) or channels % factor:
        what = f"multiple of {factor}" if factor > 1 else "int"
        raise ArgumentError(f"{name} must be a positive {what}, got {channels!r}")


def _are_positive_ints(values: Any) -> bool:
    return isinstance(values, Sequence) and all(map(is_positive_int, values))


def check_layer_cfgs(**cfgs: OptionalConfig) -> None:
    """Raises ArgumentError unless each is None or the config of a registered layer."""
    for name, cfg in cfgs.items():
        if cfg is not None:
            _check_layer_cfg(name, cfg)


def _check_layer_cfg(name: str, cfg: dict) -> None:
    if not isinstance(cfg, dict) or "type" not in cfg:
        raise ArgumentError(f"{name} must be None or a dict with the key 'type', got {cfg!r}")
    with MODELS.switch_scope_and_registry(None) as registry:
        if isinstance(cfg["type"], str) and registry.get(cfg["type"]) is None:
            raise ArgumentError(f"{name}: no layer is registered as {cfg['type']!r}")


def check_involution_cfg(cfg: OptionalConfig) -> None:
    """Raises ArgumentError unless ``cfg`` is None or has arguments of an involution's own."""
    if cfg is not None and not (isinstance(cfg, dict) and cfg.keys() <= set(_OF_INVOLUTION)):
        raise ArgumentError(
            f"involution_cfg must be None or a dict of {', '.join(_OF_INVOLUTION)}, got {cfg!r}"
        )


def check_norm(norm_cfg: dict, channels: int) -> None:
    """Builds a norm of the narrowest layer, since only that shows arguments that do not fit.

    Raises:
        ArgumentError: If it cannot be built.
    """
    try:
        build_norm_layer(norm_cfg, channels)
    except (AssertionError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"norm_cfg={norm_cfg!r} makes no norm of {channels} channels: "
            f"{str(error) or 'it lacks num_groups'}"
        ) from error


def check_stages(
    num_stages: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    """Raises ArgumentError unless what counts stages fits ``num_stages``."""
    if num_stages not in (1, 2, 3, 4):
        raise ArgumentError(f"num_stages must be 1 to 4, got {num_stages!r}")
    for name, values in (("strides", strides), ("dilations", dilations)):
        if not _are_positive_ints(values) or len(values) != num_stages:
            raise ArgumentError(
                f"{name} must be a sequence of num_stages={num_stages} positive ints, got "
                f"{values!r}"
            )
    if (
        not isinstance(out_indices, Sequence)
        or not out_indices
        or not all(index in range(num_stages) for index in out_indices)
    ):
        raise ArgumentError(
            f"out_indices must be a sequence of stages from 0 to {num_stages - 1}, got "
            f"{out_indices!r}"
        )
    if frozen_stages not in range(-1, num_stages + 1):
        raise ArgumentError(f"frozen_stages must be -1 to {num_stages}, got {frozen_stages!r}")


def check_kernel_sizes(**sizes: int) -> None:
    """Raises ArgumentError unless each is an odd positive int."""
    for name, size in sizes.items():
        if not is_positive_int(size) or size % 2 == 0:
            raise ArgumentError(f"{name} must be an odd positive int, got {size!r}")


def check_probability(name: str, value: float) -> None:
    """Raises ArgumentError unless ``value`` is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise ArgumentError(f"{name} must be in [0, 1), got {value!r}")
