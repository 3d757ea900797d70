"""Layers of a block that share one routing."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from rednet.errors import ArgumentError, first_names
from rednet.layers.condconv import CondConv2d

_NAMES_SHOWN = 5


def share_routing(layers: Mapping[str, nn.Module], patterns: list[re.Pattern[str]]) -> None:
    """Lets the layers whose names match with the same text share the routing of their first.

    Args:
        layers: Layers by name, in the order in which they run.
        patterns: Expressions that match the beginning of a name that the layers of a block share.

    Raises:
        ArgumentError: If a layer has no routing that can be shared, or no two layers match with the
            same text.
    """
    blocks: dict[str, list[CondConv2d]] = {}
    for name, layer in layers.items():
        match = next(filter(None, (each.search(name) for each in patterns)), None)
        if match is None:
            continue
        if not isinstance(layer, CondConv2d):
            raise ArgumentError(
                f"share_routing matches {name}, a {type(layer).__name__}: only CondConv2d has a "
                "routing that layers can share"
            )
        blocks.setdefault(match.group(), []).append(layer)
    if all(len(block) < 2 for block in blocks.values()):
        raise ArgumentError(
            "share_routing must match several layers of a block with the same text, of "
            f"{first_names(list(layers), _NAMES_SHOWN)}; it matches {list(blocks) or 'none'}"
        )
    for first, *others in blocks.values():
        for layer in others:
            layer.share_routing(first)
