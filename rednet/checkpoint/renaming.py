"""Names of published checkpoints, and what they are called in the models of this package."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate

# DistributedDataParallel's prefix.
_WRAPPER = (re.compile(r"^module\."), "")
# Names that match nothing stay.
_REDNET = (
    _WRAPPER,
    # a bare backbone
    (re.compile(r"^(?=(stem|layer[1-4])\.)"), "backbone."),
    # the classifier of PaddleClas
    (re.compile(r"^fc\."), "head.fc."),
    (re.compile(r"^(neck\.fpn_convs\.\d+)\.(?=conv[12]\.(conv|bn)\.)"), r"\1.conv."),
    (re.compile(r"^(roi_head\.mask_head\.convs\.\d+)\.0\.(?=conv[12]\.(conv|bn)\.)"), r"\1.conv."),
)
# torchvision's ResNet and MobileNetV2, whose names the authors of ODConv and SPConv kept.
_TORCHVISION = (
    _WRAPPER,
    (re.compile(r"^(?=(conv1|bn1|layer[1-4])\.)"), "backbone."),
    (re.compile(r"^(fc|classifier\.1)\."), "head.fc."),
)
# The networks of ACNet's authors. A block with a ReLU after it is ``acb`` in a Sequential, and one
# without stands for itself.
_ACNET = (
    _WRAPPER,
    (re.compile(r"\.acb\.(?=(square|ver|hor|fused)_)"), "."),
    (re.compile(r"^conv1\.conv\."), "backbone.conv1."),
    (re.compile(r"^conv1\.bn\."), "backbone.bn1."),
    (re.compile(r"^stage(\d)\.projection\.conv\."), r"backbone.layer\1.0.downsample.0."),
    (re.compile(r"^stage(\d)\.projection\.bn\."), r"backbone.layer\1.0.downsample.1."),
    (re.compile(r"^stage(\d)\.block(\d+)\.conv(\d)\.conv\."), r"backbone.layer\1.\2.conv\3."),
    (re.compile(r"^stage(\d)\.block(\d+)\.conv(\d)\.bn\."), r"backbone.layer\1.\2.bn\3."),
    (re.compile(r"^stage(\d)\.block(\d+)\.conv(\d)\."), r"backbone.layer\1.\2.conv\3."),
    (re.compile(r"^fc\."), "head.fc."),
)
# In ResNet-18 and ResNet-34 a stage is a plain Sequential.
_ACNET_OF_BASIC_BLOCKS = (
    (re.compile(r"^stage(\d)\.\d+\.shortcut\."), r"stage\1.projection."),
    (re.compile(r"^stage(\d)\.(\d+)\."), r"stage\1.block\2."),
    (re.compile(r"^linear\."), "fc."),
)
# Their networks for CIFAR-10: Cifar-quick, VGG-16, ResNet-56 and WRN-16-8.
_ACNET_OF_CIFAR = (
    (re.compile(r"\.acb\."), ".conv."),
    (re.compile(r"(?<!\.conv)\.(?=(square|ver|hor|fused)_)"), ".conv."),
    (re.compile(r"^(?:stage1\.)?(?=conv\d\.)"), "backbone."),
    (re.compile(r"^backbone\.conv1\.(?=weight$)"), "backbone.conv1.conv."),
    (re.compile(r"^stage(\d)\.block(\d+)\."), r"backbone.layer\1.\2."),
    (re.compile(r"^stage(\d)\.projection\."), r"backbone.layer\1.0.downsample."),
    (re.compile(r"(?<=\d)\.proj\."), ".shortcut."),
    (re.compile(r"^last_bn\."), "backbone.bn."),
    (re.compile(r"^(fc1|linear1)\."), "neck.fc."),
    (re.compile(r"^(fc2|linear2|linear)\."), "head.fc."),
)
_VGG_CONVOLUTION = re.compile(r"^stem\.conv(\d+)\.")
_BLOCK = re.compile(r"^(stage\d\.block)(\d+)\.")
# A pooling stands after these convolutions, and counts in mmpretrain's VGG.
_VGG_STAGE_ENDS = (2, 4, 7, 10)
_MOBILENET_BLOCK = re.compile(r"^(?:backbone\.)?features\.(\d+)\.conv\.(\d)\.(?:([01])\.)?(.+)$")
_MOBILENET_ENDS = re.compile(r"^(?:backbone\.)?features\.(0|18)\.([01])\.(.+)$")
_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)
# timm's EfficientNet, in whose last stages CondConv was published.
_EFFICIENTNET_ENDS = (
    (re.compile(r"^conv_stem\."), "backbone.layers.0.conv."),
    (re.compile(r"^bn1\."), "backbone.layers.0.bn."),
    (re.compile(r"^conv_head\."), "backbone.layers.6.conv."),
    (re.compile(r"^bn2\."), "backbone.layers.6.bn."),
    (re.compile(r"^classifier\."), "head.fc."),
)
_EFFICIENTNET_BLOCK = re.compile(r"^blocks\.(\d)\.(\d+)\.(.+)$")
_EFFICIENTNET_SQUEEZE = (
    (re.compile(r"^se\.conv_reduce\."), "se.conv1.conv."),
    (re.compile(r"^se\.conv_expand\."), "se.conv2.conv."),
    (re.compile(r"^routing_fn\."), "expand_conv.conv.routing_fn."),
)
# The layers of a block in their order, here and in timm, whose norms are numbered. Those of the
# first stage do not expand.
_EFFICIENTNET_LAYERS = ("expand_conv", "depthwise_conv", "linear_conv")
_EFFICIENTNET_CONVOLUTIONS = ("conv_pw", "conv_dw", "conv_pwl")
_EFFICIENTNET_FIRST_CONVOLUTIONS = ("conv_dw", "conv_pw")


def is_rednet(name: str) -> bool:
    """Whether an entry is one that only a RedNet has, by its published name."""
    return re.search(r"(^|\.)stem\.", name) is not None


def is_acnet(name: str) -> bool:
    """Whether an entry is one that only the networks of ACNet's authors have."""
    pattern = r"^(module\.)?(stage\d\.(block)?\d+|(stem\.)?conv3\.(acb|conv))\."
    return re.search(pattern, name) is not None


def acnet_names(names: Iterable[str]) -> dict[str, str]:
    """OpenMMLab's names of the entries of a network of ACNet's authors.

    Those for CIFAR-10 call their classifiers otherwise than those for ImageNet.
    """
    plain = {name: _replaced(name, (_WRAPPER,)) for name in names}
    if any(re.match(r"stage\d\.\d", name) for name in plain.values()):
        plain = {name: _replaced(new, _ACNET_OF_BASIC_BLOCKS) for name, new in plain.items()}
    elif any(re.match(r"(linear|fc\d)", name) for name in plain.values()):
        is_wide = any(name.startswith("last_bn.") for name in plain.values())
        return {name: _cifar_acnet_name(new, 1 if is_wide else 0) for name, new in plain.items()}
    return {name: _replaced(new, _ACNET) for name, new in plain.items()}


def is_efficientnet(name: str) -> bool:
    """Whether an entry is one that only timm's EfficientNets have."""
    return re.search(r"^(module\.)?(conv_stem\.|blocks\.\d\.\d+\.conv_dw\.)", name) is not None


def efficientnet_names(names: Iterable[str]) -> dict[str, str]:
    """OpenMMLab's names of the entries of timm's EfficientNet.

    OpenMMLab joins timm's fifth stage to the fourth and the seventh to the sixth, so that the
    number of a block depends on how many blocks there are.
    """
    plain = {name: _replaced(name, (_WRAPPER, *_EFFICIENTNET_ENDS)) for name in names}
    matches = list(filter(None, map(_EFFICIENTNET_BLOCK.match, plain.values())))
    blocks = {stage: {int(each[2]) for each in matches if each[1] == stage} for stage in "35"}
    return {
        name: _efficientnet_block(new, len(blocks["3"]), len(blocks["5"]))
        for name, new in plain.items()
    }


def rednet_name(name: str) -> str:
    """The name here of an entry of mmcls 0.x, mmdet 2.x, mmseg 0.x or PaddleClas."""
    return _replaced(name, _REDNET)


def torchvision_name(name: str) -> str:
    """OpenMMLab's name of an entry of torchvision's ResNet or MobileNetV2."""
    name = _replaced(name, _TORCHVISION)
    ends = _MOBILENET_ENDS.match(name)
    if ends:
        layer = "conv1" if ends[1] == "0" else "conv2"
        return f"backbone.{layer}.{_conv_or_bn(ends[2])}.{ends[3]}"
    block = _MOBILENET_BLOCK.match(name)
    return _mobilenet_block(int(block[1]), block[2], block[3], block[4]) if block else name


def _replaced(name: str, patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in patterns:
        name = pattern.sub(replacement, name)
    return name


def _cifar_acnet_name(name: str, first_block: int) -> str:
    """An entry of a network for CIFAR-10, whose blocks are counted from ``first_block``."""
    vgg = _VGG_CONVOLUTION.match(name)
    if vgg:
        number = int(vgg[1])
        index = number - 1 + sum(number > end for end in _VGG_STAGE_ENDS)
        return _replaced(f"backbone.features.{index}.{name[vgg.end() :]}", _ACNET_OF_CIFAR)
    name = _BLOCK.sub(lambda match: f"{match[1]}{int(match[2]) - first_block}.", name)
    return _replaced(name, _ACNET_OF_CIFAR)


def _mobilenet_block(number: int, index: str, part: str | None, rest: str) -> str:
    """An entry of an inverted residual.

    Its first layers are pairs of convolution and norm, its last convolution and norm are two
    entries of their own.
    """
    last = 1 if number == 1 else 2  # the first block does not expand
    if part is None:
        part = str(int(index) - last)
        index = str(last)
    ends = list(accumulate(_MOBILENET_STAGES))
    stage = next((each for each, end in enumerate(ends) if number <= end), len(ends) - 1)
    block = number - 1 - (ends[stage] - _MOBILENET_STAGES[stage])
    return f"backbone.layer{stage + 1}.{block}.conv.{index}.{_conv_or_bn(part)}.{rest}"


def _efficientnet_block(name: str, blocks_of_3: int, blocks_of_5: int) -> str:
    match = _EFFICIENTNET_BLOCK.match(name)
    if match is None:
        return name
    stage, block, rest = int(match[1]), int(match[2]), match[3]
    layer = (1, 2, 3, 4, 4, 5, 5)[min(stage, 6)]
    block += {4: blocks_of_3, 6: blocks_of_5}.get(stage, 0)
    convolutions = _EFFICIENTNET_CONVOLUTIONS if stage else _EFFICIENTNET_FIRST_CONVOLUTIONS
    layers = _EFFICIENTNET_LAYERS[-len(convolutions) :]
    part, _, entry = rest.partition(".")
    if part.startswith("bn"):
        rest = f"{layers[int(part[2:]) - 1]}.bn.{entry}"
    elif part in convolutions:
        rest = f"{layers[convolutions.index(part)]}.conv.{entry}"
    else:
        rest = _replaced(rest, _EFFICIENTNET_SQUEEZE)
    return f"backbone.layers.{layer}.{block}.{rest}"


def _conv_or_bn(part: str) -> str:
    return "conv" if part == "0" else "bn"
