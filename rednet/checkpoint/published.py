"""Converts published checkpoints into ones that load into this package's models.

RedNet's were written by mmcls 0.x, mmdet 2.x and mmseg 0.x. Most of their keys are still valid.
They differ where an involution replaces a ConvModule in an FPN or a mask head: here it is the
ConvModule's convolution, so the name is longer. Those of the other layers have torchvision's names,
or ACNet's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rednet.checkpoint.renaming import (
    acnet_names,
    efficientnet_names,
    is_acnet,
    is_efficientnet,
    is_rednet,
    rednet_name,
    torchvision_name,
)
from rednet.errors import ArgumentError
from rednet.layers.involution import GROUP_CHANNELS, generated_kernel_size

# The parts of a classifier, a detector or a segmentor that may follow the backbone.
HEADS = re.compile(r"^(neck|head|rpn_head|bbox_head|roi_head|decode_head|auxiliary_head)\.")
BACKBONE = re.compile(
    r"^backbone\.("
    r"stem\.(0\.(conv|bn)|1\.(conv1\.(conv|bn)|conv2\.conv)|2|4\.(conv|bn))|"
    r"layer[1-4]\.\d+\.(conv[13]|bn[123]|downsample\.[012]|conv2\.(conv1\.(conv|bn)|conv2\.conv))"
    r")\.(weight|bias|running_mean|running_var|num_batches_tracked)$"
)
# The classifier that ODConv's backbones keep in a detector, which never runs it.
UNUSED = re.compile(r"^backbone\.(fc|classifier\.1)\.(weight|bias)$")
DETECTOR = re.compile(r"^(module\.)?(rpn_head|roi_head|bbox_head)\.")
GENERATOR = re.compile(r"^(.+)\.conv2\.conv\.weight$")


class Conversion(NamedTuple):
    """The result of converting a checkpoint.

    Attributes:
        state_dict: The entries that were taken, by their new names.
        taken: Names that stayed.
        renamed: New names by old ones.
        refused: Reasons by name.
        unused: Names of entries that were left out because no detector uses them.
        missing: Entries of the model that the checkpoint lacks, if a model was given.
        added: Entries that old files lack and whose value is known: counts of batches, which start
            at 0, and temperatures, which a trained layer keeps at 1.
        kernel_sizes: Kernel size of each involution by its new name, derived from its weights.
    """

    state_dict: dict[str, Tensor]
    taken: list[str]
    renamed: dict[str, str]
    refused: dict[str, str]
    unused: list[str]
    missing: list[str]
    added: list[str]
    kernel_sizes: dict[str, int]

    @property
    def stem_kernel_size(self) -> int | None:
        """Kernel size of the stem's involution, None without one."""
        return self.kernel_sizes.get("backbone.stem.1")

    def lines(self) -> Iterator[str]:
        """One line for every entry, then the kernel sizes and the counts."""
        yield from (f"taken    {name}" for name in self.taken)
        yield from (f"renamed  {old} -> {new}" for old, new in self.renamed.items())
        yield from (f"refused  {name}: {reason}" for name, reason in self.refused.items())
        yield from (
            f"unused   {name}: a detector does not run its backbone's classifier"
            for name in self.unused
        )
        yield from (f"missing  {name}" for name in self.missing)
        yield from (f"added    {name}: {self.state_dict[name].item():g}" for name in self.added)
        if self.stem_kernel_size is not None:
            yield f"the stem's involution has stem_kernel_size={self.stem_kernel_size}"
        yield (
            f"{len(self.taken)} entries taken, {len(self.renamed)} renamed, "
            f"{len(self.refused)} refused, {len(self.missing)} missing, "
            f"{len(self.added)} added, {len(self.unused)} unused"
        )


def convert(
    state_dict: Mapping[str, Any], build_model: Callable[[int | None], nn.Module] | None = None
) -> Conversion:
    """Renames the entries of a published checkpoint to their names in this package.

    A checkpoint of ACNet's authors is known by its stages of blocks, timm's EfficientNet by its
    stem, and one without the stem of a RedNet is read as one with torchvision's names.

    Args:
        state_dict: Weights by published name.
        build_model: Builds the model that will load the weights, given the kernel size of the
            checkpoint's stem involution or None. With it, every name and shape is compared with the
            model's. Without it, names are checked as far as they are known: those of a backbone
            fully, those of a head by their beginning.

    Returns:
        The entries with their new names, and a report on each.
    """
    result = Conversion({}, [], {}, {}, [], [], [], {})
    other = _other_names(state_dict)
    rednet = not other and (build_model is None or any(is_rednet(name) for name in state_dict))
    rename = rednet_name if rednet else torchvision_name
    is_detector = any(DETECTOR.match(name) for name in state_dict)
    for old, value in state_dict.items():
        new = other[old] if other else rename(old)
        if is_detector and UNUSED.match(new):
            result.unused.append(old)
            continue
        reason = _objection(new, value, result.state_dict, rednet)
        if reason is not None:
            result.refused[old] = reason
            continue
        result.state_dict[new] = value
        if new == old:
            result.taken.append(old)
        else:
            result.renamed[old] = new
    if rednet:
        _read_kernel_sizes(result)
    _add_batch_counts(result)
    if build_model is not None:
        _compare_with_model(result, build_model)
    return result


def _other_names(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """The new names of a checkpoint of ACNet's authors or of timm's EfficientNet, else none."""
    if any(is_acnet(name) for name in state_dict):
        return acnet_names(state_dict)
    if any(is_efficientnet(name) for name in state_dict):
        return efficientnet_names(state_dict)
    return {}


def _add_batch_counts(result: Conversion) -> None:
    """Adds what batch norms count since PyTorch 0.4.1."""
    for name in list(result.state_dict):
        count = f"{name.removesuffix('running_mean')}num_batches_tracked"
        if name.endswith(".running_mean") and count not in result.state_dict:
            result.state_dict[count] = torch.tensor(0)
            result.added.append(count)


def _objection(
    name: str, value: Any, taken: Mapping[str, Tensor], is_from_rednet: bool
) -> str | None:
    if not isinstance(value, Tensor):
        return f"not a tensor but {type(value).__name__}"
    if name in taken:
        return f"a second entry for {name}"
    if not is_from_rednet:
        return None  # the model is known, and compared with
    if name.startswith("backbone."):
        return None if BACKBONE.match(name) else "no entry of a RedNet has this name"
    return None if HEADS.match(name) else "no part of a model that is known has this name"


def _read_kernel_sizes(result: Conversion) -> None:
    """Derives every involution's kernel size, and refuses those whose weights do not fit."""
    for name in list(result.state_dict):
        match = GENERATOR.match(name)
        reduction = f"{match[1]}.conv1.conv.weight" if match else None
        if match is None or reduction not in result.state_dict:
            continue
        try:
            size = _kernel_size(result.state_dict, name, reduction)
        except ArgumentError as error:
            names = [each for each in result.state_dict if each.startswith(f"{match[1]}.")]
            _refuse(result, names, str(error))
        else:
            result.kernel_sizes[match[1]] = size


def _kernel_size(state_dict: Mapping[str, Tensor], generator: str, reduction: str) -> int:
    """Kernel size of an involution, from the weights of its two convolutions."""
    shape = tuple(state_dict[reduction].shape)
    if len(shape) != 4:
        raise ArgumentError(f"{reduction} must have 4 dimensions, got shape {shape}")
    groups = shape[1] // GROUP_CHANNELS
    return generated_kernel_size(generator, state_dict[generator], groups)


def _refuse(result: Conversion, names: Iterable[str], reason: str) -> None:
    """Moves entries, by their new names, to the refused ones."""
    old_names = {new: old for old, new in result.renamed.items()}
    for name in names:
        del result.state_dict[name]
        old = old_names.get(name, name)
        result.refused[old] = reason
        if name in old_names:
            del result.renamed[old]
        elif name in result.added:
            result.added.remove(name)
        else:
            result.taken.remove(name)


def _compare_with_model(result: Conversion, build_model: Callable[[int | None], nn.Module]) -> None:
    # Not on the meta device, where mmpretrain's ResNet cannot be built.
    state = build_model(result.stem_kernel_size).state_dict()
    own = {name: tuple(value.shape) for name, value in state.items()}
    for name in list(result.state_dict):
        value = result.state_dict[name] = _as_experts(result.state_dict[name], own.get(name, ()))
        shape = tuple(value.shape)
        if name not in own:
            _refuse(result, [name], "the config's model has no such entry")
        elif shape != own[name]:
            _refuse(result, [name], f"its shape is {shape}, the config's model has {own[name]}")
    for name in own:
        if name in result.state_dict:
            continue
        if name.endswith(".temperature"):
            result.state_dict[name] = torch.ones_like(state[name])
            result.added.append(name)
        else:
            result.missing.append(name)


def _as_experts(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An entry in which timm keeps each expert of CondConv as a row, in the shape given."""
    is_flat = value.dim() == 2 and len(shape) == 5 and value.numel() == prod(shape)
    return value.view(shape) if is_flat else value
