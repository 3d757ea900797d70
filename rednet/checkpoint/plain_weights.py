"""Reports how a checkpoint of the original model maps onto the swapped one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from rednet.errors import first_names
from rednet.layers.base import ConvLayer

_NAMES_SHOWN = 5


class LoadedWeights(NamedTuple):
    """The effect of loading a checkpoint into a module. Names are relative to the module.

    Attributes:
        taken: Entries that load unchanged.
        expanded: Layers that compute their own weights from a plain convolution's.
        initial: Entries that keep their initialization, without the counters of norms.
        unused: Entries of the checkpoint that the module does not have.
    """

    taken: list[str]
    expanded: list[str]
    initial: list[str]
    unused: list[str]


def report_plain_weights(module: nn.Module) -> None:
    """Makes a module report how each checkpoint that is loaded maps onto it.

    From then on, loading a checkpoint that fills only part of the module logs one line that counts
    the entries taken as they are, the convolutions expanded into a layer and the entries left at
    their initialization. It works for ``load_state_dict`` of PyTorch and of mmengine (``load_from``
    and ``init_cfg=dict(type='Pretrained', ...)``), and wherever the module is part of another.

    Args:
        module: The module that reports.
    """
    hooks = module._load_state_dict_pre_hooks.values()
    if not any(getattr(hook, "hook", None) is _report for hook in hooks):  # swapped before
        module._register_load_state_dict_pre_hook(_report, with_module=True)


def compare_with_checkpoint(
    module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = ""
) -> LoadedWeights:
    """Returns what loading a checkpoint would do to a module, without loading it.

    Args:
        module: The module.
        state_dict: The checkpoint.
        prefix: Prefix of the module's entries in it: the module's name and a dot.
    """
    given = {
        key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)
    }
    own = module.state_dict()
    expanded, filled, used = [], set(), set()
    for name, layer in module.named_modules():
        if isinstance(layer, ConvLayer):
            path = f"{name}." if name else ""
            adapted = layer.expand_plain_state(state_dict, prefix + path)
            if adapted is not None:
                expanded.append(name)
                made = {path + key for key in adapted}
                filled |= made
                plain = layer.plain_names(state_dict, prefix + path).values()
                used |= {each[len(prefix) :] for each in plain} - (made - own.keys())
    offered = given.keys() - used
    taken = [key for key in own if key in offered and _shape(given[key]) == _shape(own[key])]
    return LoadedWeights(
        taken=taken,
        expanded=expanded,
        initial=[
            key
            for key in own
            if key not in filled.union(taken) and not key.endswith("num_batches_tracked")
        ],
        unused=sorted(given.keys() - used - set(taken)),
    )


def _shape(entry: Any) -> torch.Size | None:
    return entry.shape if isinstance(entry, Tensor) else None  # a module's extra state is anything


def _report(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    result = compare_with_checkpoint(module, state_dict, prefix)
    if not result.expanded and not result.initial and not result.unused:
        return
    print_log(
        f"{type(module).__name__}: {len(result.taken)} entries of the checkpoint taken as they "
        f"are, {len(result.expanded)} convolutions expanded, {len(result.initial)} entries left at "
        f"their initialization{_shown(result.initial)}, {len(result.unused)} entries of the "
        f"checkpoint unused{_shown(result.unused)}",
        logger="current",
    )


def _shown(names: list[str]) -> str:
    return f" ({first_names(names, _NAMES_SHOWN)})" if names else ""
