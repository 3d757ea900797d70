"""Names and shapes of the entries in published checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = {26: (1, 2, 4, 1), 50: (3, 4, 6, 3)}

# The published names and shapes, written down from the description of the old code, not from ours.
Shapes = dict[str, tuple[int, ...]]


def norm(name: str, channels: int) -> Shapes:
    shapes = {
        f"{name}.{each}": (channels,) for each in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{name}.num_batches_tracked": ()}


def involution(name: str, channels: int, kernel_size: int) -> Shapes:
    rows = kernel_size**2 * channels // 16
    return {
        f"{name}.conv1.conv.weight": (channels // 4, channels, 1, 1),
        **norm(f"{name}.conv1.bn", channels // 4),
        f"{name}.conv2.conv.weight": (rows, channels // 4, 1, 1),
        f"{name}.conv2.conv.bias": (rows,),
    }


def convolution(name: str, inputs: int, outputs: int, kernel_size: int) -> Shapes:
    return {
        f"{name}.weight": (outputs, inputs, kernel_size, kernel_size),
        f"{name}.bias": (outputs,),
    }


def backbone(depth: int, stem_kernel_size: int) -> Shapes:
    shapes: Shapes = {
        "stem.0.conv.weight": (32, 3, 3, 3),
        **norm("stem.0.bn", 32),
        **involution("stem.1", 32, stem_kernel_size),
        **norm("stem.2", 32),
        "stem.4.conv.weight": (64, 32, 3, 3),
        **norm("stem.4.bn", 64),
    }
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, inputs, 1, 1)
            shapes |= norm(f"{name}.bn1", width) | involution(f"{name}.conv2", width, 7)
            shapes |= norm(f"{name}.bn2", width)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= norm(f"{name}.bn3", 4 * width)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    return shapes


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def classifier(depth: int) -> Shapes:
    head = {"head.fc.weight": (1000, 2048), "head.fc.bias": (1000,)}
    return prefixed("backbone.", backbone(depth, 3)) | head


def laterals(levels: tuple[int, ...]) -> Shapes:
    shapes: Shapes = {}
    for level, channels in enumerate(levels):
        shapes |= convolution(f"neck.lateral_convs.{level}.conv", channels, 256, 1)
    return shapes


def mask_rcnn() -> Shapes:
    """Mask R-CNN with involutions in FPN, RPN and mask head."""
    shapes = prefixed("backbone.", backbone(50, 7)) | laterals((256, 512, 1024, 2048))
    for level in range(4):
        shapes |= involution(f"neck.fpn_convs.{level}", 256, 7)
    shapes |= involution("rpn_head.rpn_conv", 256, 7)
    shapes |= convolution("rpn_head.rpn_cls", 256, 3, 1) | convolution(
        "rpn_head.rpn_reg", 256, 12, 1
    )
    linears = {"shared_fcs.0": (1024, 12544), "shared_fcs.1": (1024, 1024)}
    linears |= {"fc_cls": (81, 1024), "fc_reg": (320, 1024)}
    for name, shape in linears.items():
        shapes[f"roi_head.bbox_head.{name}.weight"] = shape
        shapes[f"roi_head.bbox_head.{name}.bias"] = shape[:1]
    for index in range(4):
        shapes |= involution(f"roi_head.mask_head.convs.{index}.0", 256, 7)
    shapes |= convolution("roi_head.mask_head.upsample", 256, 256, 2)
    return shapes | convolution("roi_head.mask_head.conv_logits", 256, 80, 1)


def retinanet() -> Shapes:
    """RetinaNet with involutions in the FPN; its extra levels are convolutions."""
    shapes = prefixed("backbone.", backbone(50, 7)) | laterals((512, 1024, 2048))
    for level in range(3):
        shapes |= involution(f"neck.fpn_convs.{level}", 256, 7)
    shapes |= convolution("neck.fpn_convs.3.conv", 2048, 256, 3)
    shapes |= convolution("neck.fpn_convs.4.conv", 256, 256, 3)
    for index in range(4):
        for branch in ("cls", "reg"):
            shapes |= convolution(f"bbox_head.{branch}_convs.{index}.conv", 256, 256, 3)
    shapes |= convolution("bbox_head.retina_cls", 256, 720, 3)
    return shapes | convolution("bbox_head.retina_reg", 256, 36, 3)


def segmentor() -> Shapes:
    """Semantic FPN with involutions in its neck."""
    shapes = prefixed("backbone.", backbone(50, 7)) | laterals((256, 512, 1024, 2048))
    for level in range(4):
        shapes |= involution(f"neck.fpn_convs.{level}", 256, 7)
        for index in range(max(1, level)):
            name = f"decode_head.scale_heads.{level}.{2 * index if level else 0}"
            shapes[f"{name}.conv.weight"] = (128, 128 if index else 256, 3, 3)
            shapes |= norm(f"{name}.bn", 128)
    return shapes | convolution("decode_head.conv_seg", 128, 19, 1)


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
